//! What leaves: rows of an application as one document, secrets sealed with the key of the archive.

use super::super::super::Api;
use super::super::super::error::ApiError;
use super::super::route::HIDDEN;
use super::{ArchiveKey, certificate_key, secret_of, users_of};
use crate::wire::{
    CarriedApplication, CarriedCertificate, CarriedComponent, CarriedRevision, CarriedRoute, CarriedSecret,
    ExportRequest, StreamRequest,
};
use arco_daemon::certificate::covers;
use arco_model::application::Application;
use arco_model::artifact::{Descriptor, Digest};
use arco_model::component::{Component, Power, Revision};
use arco_model::error::{ErrorKind, Problem};
use arco_model::name::{ApplicationName, TenantName};
use arco_model::secret::SecretVersion;
use arco_model::source::Source;
use arco_model::spec::{ComponentKind, ComponentSpec};
use arco_store::blob::content_path;
use arco_store::images::MANIFEST_MAX;
use arco_store::secrets::Sealed;
use arco_store::sql::{CertificateRow, Query, RouteRow, StreamRow};
use std::collections::BTreeSet;

impl Api {
    /// An application as it is.
    pub(in super::super::super) async fn export(
        &self,
        tenant: &TenantName,
        application: &ApplicationName,
        request: &ExportRequest,
    ) -> Result<CarriedApplication, ApiError> {
        let key = ArchiveKey::new(request.key.as_ref())?;
        let missing = || Problem::not_found("application", application);
        let found = self.deps.metadata.find::<Application>(tenant.as_str(), application.as_str()).await?;
        let found = found.ok_or_else(missing)?.value;
        let rows = self.deps.metadata.list::<Component>(&Query::parent(found.id.as_str())).await?.items;
        let mut components: Vec<Component> = rows.into_iter().map(|it| it.value).collect();
        components.retain(|it| !matches!(it.power, Power::Deleting { .. }));
        components.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut carried, mut routes) = (Vec::new(), Vec::new());
        for component in &components {
            if component.arriving.is_some() {
                let reference = component.reference();
                let message = format!("`{reference}` is not whole: an import of it was broken off");
                let advice = format!("import again, or say with `arco start {reference}` that it is fine");
                return Err(Problem::new(ErrorKind::Conflict, "import_unfinished", message, advice).into());
            }
            let own = self.deps.metadata.list::<RouteRow>(&Query::tag(component.id.as_str())).await?.items;
            let own: Vec<RouteRow> = own.into_iter().map(|it| it.value).collect();
            carried.push(self.export_component(component, &own, &key).await?);
            routes.extend(own);
        }
        Ok(CarriedApplication {
            name: found.name,
            driver: super::driver(&self.deps.config).to_owned(),
            domain: self.deps.config.server.domain.clone(),
            components: carried,
            certificates: self.export_certificates(tenant, &routes, &key).await?,
        })
    }

    async fn export_component(
        &self,
        component: &Component,
        routes: &[RouteRow],
        key: &ArchiveKey,
    ) -> Result<CarriedComponent, ApiError> {
        let revision = match &component.desired_revision {
            Some(id) => self.deps.metadata.get::<Revision>(id.as_str()).await?.map(|it| it.value),
            None => None,
        };
        let mut blobs = Vec::new();
        let carried = match &revision {
            Some(revision) => Some(self.export_revision(component, revision, &mut blobs).await?),
            None => None,
        };
        if let Source::Upload { digest, .. } = &component.spec.source
            && let Some(found) = self.deps.blobs.stat(&content_path(digest)).await?
            && blobs.iter().all(|it: &Descriptor| it.digest != *digest)
        {
            let media_type = "application/gzip".to_owned();
            blobs.push(Descriptor { media_type, digest: digest.clone(), size: found.size });
        }
        let specs = [Some(&component.spec), revision.as_ref().map(|it| &it.spec)];
        let streams = self.deps.metadata.list::<StreamRow>(&Query::tag(component.id.as_str())).await?.items;
        let streams = streams.into_iter().map(|it| it.value.stream).map(|it| StreamRequest {
            protocol: it.protocol,
            port: Some(it.port),
            target_port: Some(it.target.port),
            address: it.address,
        });
        Ok(CarriedComponent {
            name: component.name.clone(),
            spec: component.spec.clone(),
            generation: component.generation,
            runs: component.power == Power::On,
            revision: carried,
            secrets: self.export_secrets(component, specs.into_iter().flatten(), key).await?,
            routes: self.export_routes(component, routes, key).await?,
            streams: streams.collect(),
            blobs,
            places: self.export_places(component, revision.as_ref()).await?,
        })
    }

    /// Places whose content travels: those that are asked for, and those that it was scaled down from.
    async fn export_places(&self, component: &Component, revision: Option<&Revision>) -> Result<u32, ApiError> {
        let asked = match component.spec.kind {
            ComponentKind::Stateful => component.wanted_replicas(component.observed.scaling.as_ref()).max(1),
            _ => 1,
        };
        match revision {
            Some(revision) => self.places_held(component, revision, asked).await,
            None => Ok(asked),
        }
    }

    async fn export_revision(
        &self,
        component: &Component,
        revision: &Revision,
        blobs: &mut Vec<Descriptor>,
    ) -> Result<CarriedRevision, ApiError> {
        let image = &revision.artifact;
        let gone = |what: String| {
            let reference = component.reference();
            let message = format!("{what} of `{reference}` is not in the registry any more");
            let advice = format!("deploy `{reference}` again, then export");
            Problem::new(ErrorKind::Conflict, "image_missing", message, advice)
        };
        let found = self.deps.images.manifest(&image.repository, &image.digest).await;
        let row = found.map_err(super::import::image_error)?.ok_or_else(|| gone(format!("image {}", image.digest)))?;
        let row = row.value;
        let size = self.blob_size(&image.digest).await.map_err(|_| gone(format!("image {}", image.digest)))?;
        blobs.push(Descriptor { media_type: row.media_type.clone(), digest: image.digest.clone(), size });
        for digest in row.references {
            if blobs.iter().any(|it| it.digest == digest) {
                continue;
            }
            let size = self.blob_size(&digest).await.map_err(|_| gone(format!("layer {digest}")))?;
            blobs.push(Descriptor { media_type: "application/octet-stream".to_owned(), digest, size });
        }
        Ok(CarriedRevision {
            number: revision.number,
            artifact: image.digest.clone(),
            media_type: row.media_type,
            architecture: self.architecture(&image.digest).await?,
            defaults: revision.defaults.clone(),
            spec: revision.spec.clone(),
            build_key: revision.build_key.clone(),
            commit: revision.commit.clone(),
            cause: revision.cause.clone(),
            created_at: revision.created_at,
        })
    }

    /// The processor that an image is for, as its configuration says.
    async fn architecture(&self, manifest: &Digest) -> Result<String, ApiError> {
        let document = self.deps.blobs.get_bytes(&content_path(manifest), MANIFEST_MAX).await?;
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap_or_default();
        let config = document["config"]["digest"].as_str().and_then(|it| it.parse::<Digest>().ok());
        let Some(config) = config else { return Ok(String::new()) };
        let config = self.deps.blobs.get_bytes(&content_path(&config), MANIFEST_MAX).await?;
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
        Ok(config["architecture"].as_str().unwrap_or_default().to_owned())
    }

    async fn export_secrets(
        &self,
        component: &Component,
        specs: impl Iterator<Item = &ComponentSpec>,
        key: &ArchiveKey,
    ) -> Result<Vec<CarriedSecret>, ApiError> {
        let named: BTreeSet<(&String, u64)> = specs.flat_map(|it| &it.secrets).map(|(name, it)| (name, *it)).collect();
        let mut secrets = Vec::new();
        for (name, version) in named {
            let row_key = SecretVersion::row_key(&component.id, name, version);
            let missing = || Problem::internal(&format!("find version {version} of secret `{name}`"));
            let row = self.deps.metadata.get::<SecretVersion>(&row_key).await?.ok_or_else(missing)?.value;
            let sealed = Sealed { key_id: row.key_id.clone(), text: row.sealed.clone() };
            let value = self.deps.secrets.unseal(&row.context(), &sealed)?;
            let what = secret_of(component.application.as_str(), component.name.as_str(), name, version);
            secrets.push(CarriedSecret { name: name.clone(), version, sealed: key.seal(&what, &value)? });
        }
        Ok(secrets)
    }

    async fn export_routes(
        &self,
        component: &Component,
        rows: &[RouteRow],
        key: &ArchiveKey,
    ) -> Result<Vec<CarriedRoute>, ApiError> {
        let documents = self.route_documents(component, rows).await?;
        let mut routes = Vec::new();
        for (at, (document, row)) in documents.into_iter().zip(rows).enumerate() {
            let users = row.route.basic_auth.as_ref().map(|it| &it.users).filter(|it| !it.is_empty());
            let what = users_of(component.application.as_str(), component.name.as_str(), &row.host, at);
            let seal = |users| key.seal(&what, &serde_json::to_vec(users).unwrap_or_default());
            let sealed_users = users.map(seal).transpose()?;
            debug_assert!(document.route.basic_auth.iter().all(|it| it.users.values().all(|it| it == HIDDEN)));
            routes.push(CarriedRoute { route: document.route, sealed_users });
        }
        Ok(routes)
    }

    /// Certificates that people brought, which routes name or are covered by.
    async fn export_certificates(
        &self,
        tenant: &TenantName,
        routes: &[RouteRow],
        key: &ArchiveKey,
    ) -> Result<Vec<CarriedCertificate>, ApiError> {
        let rows = self.deps.metadata.list::<CertificateRow>(&Query::parent(tenant.as_str())).await?.items;
        let mut certificates = Vec::new();
        for row in rows.into_iter().map(|it| it.value).filter(|it| !it.automatic) {
            let uses = |it: &RouteRow| match it.route.tls.certificate.as_deref() {
                Some(name) => name == row.name,
                None => covers(&row.hosts, &it.host),
            };
            if !routes.iter().any(uses) {
                continue;
            }
            let sealed = Sealed { key_id: row.key_id, text: row.sealed_key };
            let private = self.deps.secrets.unseal(&CertificateRow::key_context(&row.id), &sealed)?;
            let sealed_key = key.seal(&certificate_key(&row.name), &private)?;
            certificates.push(CarriedCertificate { name: row.name, chain: row.chain_pem, sealed_key });
        }
        Ok(certificates)
    }
}
