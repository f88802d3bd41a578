//! Whom a client certificate names: a person or process, its role, and the tenants that it is limited to.
//!
//! Common name = name, organizational unit = role, organizations = tenants (none means all). The texts are not
//! interpreted here.

use super::PkiError;
use rcgen::{DistinguishedName, DnType};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

/// Separates tenants in the organization; no name contains it.
const SEPARATOR: &str = ",";

/// Whom a client certificate names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    /// Name of the person or process.
    pub name: String,
    /// Role, as `admin`, `viewer`, `gateway`.
    pub role: String,
    /// Tenants; empty means all.
    pub tenants: Vec<String>,
}

impl Subject {
    /// The subject that may do everything: what `admin.toml` holds.
    pub fn admin() -> Self {
        Self { name: "admin".to_owned(), role: "admin".to_owned(), tenants: Vec::new() }
    }

    /// Reads a certificate that TLS has already verified.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PkiError> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|it| PkiError::certificate("read a client's certificate", it))?;
        let name = parsed.subject();
        let tenants = first(name.iter_organization());
        Ok(Self {
            name: first(name.iter_common_name()),
            role: first(name.iter_organizational_unit()),
            tenants: tenants.split(SEPARATOR).filter(|it| !it.is_empty()).map(str::to_owned).collect(),
        })
    }

    pub(super) fn distinguished_name(&self) -> DistinguishedName {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, self.name.as_str());
        name.push(DnType::OrganizationalUnitName, self.role.as_str());
        if !self.tenants.is_empty() {
            name.push(DnType::OrganizationName, self.tenants.join(SEPARATOR));
        }
        name
    }
}

fn first<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> String {
    values.next().and_then(|it| it.as_str().ok()).unwrap_or_default().to_owned()
}
