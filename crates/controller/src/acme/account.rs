//! The platform's account with the authority: made at first need, kept sealed in the coordination store, so that all
//! controllers use one; and the way to the authority.

use super::trouble::Trouble;
use crate::Controller;
use arco_config::AcmeConfig;
use arco_store::kv::{Compare, Operation, Txn};
use arco_store::secrets::Sealed;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use instant_acme::{Account, AccountBuilder, AccountCredentials, BodyWrapper, BytesResponse, NewAccount};
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

/// Where the account's sealed credentials are, by authority and contact.
const ACCOUNTS: &str = "/acme/accounts/";
/// Longest wait for the authority: to connect, and for one answer.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
/// Largest answer that is read, in bytes.
const LARGEST: usize = 1 << 20;

impl Controller {
    /// The account; `known` is what this process made or read before.
    pub(super) async fn account(&self, known: &tokio::sync::Mutex<Option<Account>>) -> Result<Account, Trouble> {
        let mut known = known.lock().await;
        if let Some(account) = &*known {
            return Ok(account.clone());
        }
        let key = account_key(&self.deps.acme);
        let account = match self.deps.kv.get(&key).await? {
            Some(kept) => self.kept_account(&key, &kept.value).await?,
            None => self.new_account(&key).await?,
        };
        Ok(known.insert(account).clone())
    }

    /// Forgets an account that the authority does not know any more; the next order makes another.
    pub(super) async fn forget_account(&self, known: &tokio::sync::Mutex<Option<Account>>) -> Result<(), Trouble> {
        *known.lock().await = None;
        tracing::warn!("the authority does not know the account of this platform any more; another one is made");
        Ok(self.deps.kv.delete(&account_key(&self.deps.acme)).await?)
    }

    async fn kept_account(&self, key: &str, kept: &[u8]) -> Result<Account, Trouble> {
        let unreadable = |it: serde_json::Error| Trouble::Account(it.to_string());
        let (key_id, text) = serde_json::from_slice(kept).map_err(unreadable)?;
        let plain = self.deps.secrets.unseal(key, &Sealed { key_id, text })?;
        let credentials: AccountCredentials = serde_json::from_slice(&plain).map_err(unreadable)?;
        Ok(builder(&self.deps.acme)?.from_credentials(credentials).await?)
    }

    async fn new_account(&self, key: &str) -> Result<Account, Trouble> {
        let AcmeConfig { directory_url, contact, .. } = &self.deps.acme;
        let contact = (!contact.is_empty()).then(|| format!("mailto:{}", contact.trim_start_matches("mailto:")));
        let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
        let asked = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder(&self.deps.acme)?.create(&asked, directory_url.clone(), None).await?;
        let unwritable = |it: serde_json::Error| Trouble::Account(it.to_string());
        let sealed = self.deps.secrets.seal(key, &serde_json::to_vec(&credentials).map_err(unwritable)?)?;
        let value = serde_json::to_vec(&(sealed.key_id, sealed.text)).map_err(unwritable)?;
        let put = Operation::Put { key: key.as_bytes().to_vec(), value, lease: None };
        let compare = vec![Compare::Absent(key.as_bytes().to_vec())];
        let kept = self.deps.kv.txn(Txn { compare, success: vec![put], failure: Vec::new() }).await?;
        if kept.succeeded {
            tracing::info!(directory_url, "an account for automatic certificates was made");
            return Ok(account);
        }
        // Another controller was faster: its account is everybody's.
        match self.deps.kv.get(key).await? {
            Some(kept) => self.kept_account(key, &kept.value).await,
            None => Err(Trouble::Account("another controller has just forgotten it".to_owned())),
        }
    }
}

/// The key of the account of these settings.
fn account_key(config: &AcmeConfig) -> String {
    let who = format!("{} {}", config.directory_url, config.contact);
    format!("{ACCOUNTS}{}", arco_store::images::short_hash(&who))
}

fn builder(config: &AcmeConfig) -> Result<AccountBuilder, Trouble> {
    Ok(Account::builder_with_http(Box::new(Http::new(&config.ca_file)?)))
}

/// The way to the authority: HTTPS only, in bounded time and memory.
struct Http(reqwest::Client);

impl Http {
    fn new(ca_file: &Path) -> Result<Self, Trouble> {
        // Fails only when one is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("arco/", env!("CARGO_PKG_VERSION")));
        if !ca_file.as_os_str().is_empty() {
            let fail = |cause: String| Trouble::CaFile(ca_file.display().to_string(), cause);
            let text = std::fs::read(ca_file).map_err(|it| fail(it.to_string()))?;
            let roots = reqwest::Certificate::from_pem_bundle(&text).map_err(|it| fail(it.to_string()))?;
            builder = builder.tls_certs_only(roots);
        }
        builder.build().map(Self).map_err(|it| Trouble::Unreachable(it.to_string()))
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>>;

impl instant_acme::HttpClient for Http {
    fn request(&self, request: http::Request<BodyWrapper<Bytes>>) -> Answering {
        let client = self.0.clone();
        Box::pin(async move {
            let other = |it: reqwest::Error| instant_acme::Error::Other(Box::new(it));
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|it| it.to_bytes()).unwrap_or_default();
            let sending = client.request(parts.method, parts.uri.to_string()).headers(parts.headers).body(body).send();
            let mut answer = sending.await.map_err(other)?;
            let mut all = BytesMut::new();
            while let Some(piece) = answer.chunk().await.map_err(other)? {
                if all.len() + piece.len() > LARGEST {
                    return Err(instant_acme::Error::Str("an answer of the authority is larger than 1 MiB"));
                }
                all.extend_from_slice(&piece);
            }
            let (parts, ()) = {
                let mut response = http::Response::new(());
                *response.status_mut() = answer.status();
                std::mem::swap(response.headers_mut(), answer.headers_mut());
                response.into_parts()
            };
            Ok(BytesResponse { parts, body: Box::new(all.freeze()) })
        })
    }
}
