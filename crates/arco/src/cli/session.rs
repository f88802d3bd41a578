//! What every command that talks to a platform has: the client, the tenant, and how names are resolved.

use super::args::Global;
use super::failure::Failure;
use super::reference::{Named, Reference};
use super::ui::Ui;
use arco_api::client::{Client, Context, ContextError};
use arco_api::wire::ApplicationDocument;
use arco_model::name::TenantName;
use std::path::PathBuf;

/// A platform, a tenant, and where to print.
pub(crate) struct Session<'a> {
    /// The platform.
    pub(crate) client: Client,
    /// Who we are there.
    pub(crate) context: Context,
    /// Tenant of every call.
    pub(crate) tenant: String,
    /// Where to print.
    pub(crate) ui: &'a Ui,
}

impl<'a> Session<'a> {
    /// Finds the context and makes a client; connects to nothing yet.
    pub(crate) fn open(global: &Global, ui: &'a Ui) -> Result<Self, Failure> {
        let context = match &global.context {
            Some(path) => Context::load(path)?,
            None => find()?,
        };
        let tenant = global.tenant.clone().or_else(|| context.tenant.clone()).unwrap_or_else(|| "default".to_owned());
        TenantName::new(&tenant)
            .map_err(|it| Failure::usage("tenant_invalid", it.to_string(), "give `--tenant NAME`"))?;
        Ok(Self { client: Client::new(&context)?, context, tenant, ui })
    }

    /// Waits, for seconds at most, until every gateway routes by what was changed; notes it when one does not yet.
    pub(crate) async fn gateways_follow(&self) {
        let why = match self.client.gateways_follow().await {
            Ok(true) => return,
            Ok(false) => "a gateway has not taken it over within 10 s".to_owned(),
            Err(error) => super::text::one_line(&error.to_string()),
        };
        self.ui.note(&format!("the change is kept, and effective as soon as every gateway has it ({why})"));
    }

    /// The component that is meant; an application with only one component means that one.
    pub(crate) async fn component(&self, reference: &Reference) -> Result<Named, Failure> {
        let application = reference.application.clone();
        if let Some(component) = reference.component.clone() {
            return Ok(Named { application, component });
        }
        let document = self.client.application(&self.tenant, &application).await?;
        let component = only(&document)?.to_owned();
        Ok(Named { application, component })
    }

    /// The components that are meant: the named one, or all of the application.
    pub(crate) async fn components(&self, reference: &Reference) -> Result<Vec<Named>, Failure> {
        let application = reference.application.clone();
        if let Some(component) = reference.component.clone() {
            return Ok(vec![Named { application, component }]);
        }
        let document = self.client.application(&self.tenant, &application).await?;
        Ok(document
            .components
            .into_iter()
            .map(|it| Named { application: application.clone(), component: it.component })
            .collect())
    }
}

fn only(document: &ApplicationDocument) -> Result<&str, Failure> {
    let names: Vec<&str> = document.components.iter().map(|it| it.component.as_str()).collect();
    match names[..] {
        [one] => Ok(one),
        [] => Err(Failure::new(
            super::failure::exit::NOT_FOUND,
            "not_found",
            format!("application `{}` has no component", document.application),
            format!("deploy one: `arco deploy . --app {}`", document.application),
        )),
        _ => Err(Failure::usage(
            "component_missing",
            format!("application `{}` has several components: {}", document.application, names.join(", ")),
            format!("name one, as `{}/{}`", document.application, names[0]),
        )),
    }
}

/// The first context that exists of those that are looked for.
fn find() -> Result<Context, ContextError> {
    let home = std::env::var_os("HOME").map(|it| PathBuf::from(it).join(".config/arco/context.toml"));
    let places = home.into_iter().chain([PathBuf::from("/var/lib/arco/admin.toml")]);
    let mut looked = Vec::new();
    for place in places {
        match Context::load(&place) {
            Err(ContextError::Missing(_)) => looked.push(format!("`{}`", place.display())),
            // A folder that we may not even look into: somebody else's platform.
            other => return other,
        }
    }
    Err(ContextError::Missing(format!("neither {} exists", looked.join(" nor "))))
}
