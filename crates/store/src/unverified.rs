//! TLS to whoever answers, with whatever certificate: for instances, which are known by their addresses in a network of our
//! own and sign their certificates themselves, if they have any that would pass.
//!
//! The only place of the tree where certificates are not verified. What must hold: it is used where nothing else than the
//! address tells who answers; what was given an authority is never asked so.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// Settings of a client that takes any certificate, also one that is no X.509 of today, and shows none.
///
/// # Errors
/// When the provider of cryptography has no version of TLS that is safe.
pub fn client() -> Result<ClientConfig, Error> {
    let verifier = Arc::new(Anybody(Arc::new(rustls::crypto::aws_lc_rs::default_provider())));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&verifier.0)).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
