//! A driver of its own in the cluster: own namespaces, own registry contents; removed also when a test fails.

use arco_config::KubernetesConfig;
use arco_model::artifact::ImageRef;
use arco_model::name::TenantName;
use arco_orchestrator::Orchestrator as _;
use arco_orchestrator_kubernetes::{KeptLines, KubernetesOptions, KubernetesOrchestrator, PullCredentials};
use arco_store::blob::MemoryBlobs;
use arco_store::clock;
use arco_store::images::{Image, Images};
use arco_store::logs::{LogBatch, LogSink};
use arco_store::sql::MemoryMetadata;
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};

/// What a test is given.
pub(crate) struct Place {
    pub(crate) client: kube::Client,
    pub(crate) config: KubernetesConfig,
    pub(crate) images: Images,
    pub(crate) image: ImageRef,
    pub(crate) driver: Arc<KubernetesOrchestrator>,
    pub(crate) logs: Mutex<mpsc::Receiver<LogBatch>>,
    credentials: Option<Arc<dyn PullCredentials>>,
    sink: LogSink,
}

/// The file that names the cluster.
pub(crate) fn kubeconfig() -> Option<PathBuf> {
    let found = std::env::var_os("ARCO_TEST_KUBECONFIG").filter(|it| !it.is_empty());
    if found.is_none() {
        eprintln!(
            "SKIPPED: no Kubernetes is named by ARCO_TEST_KUBECONFIG (tests/kubernetes/cluster.py run makes one)"
        );
    }
    found.map(PathBuf::from)
}

/// Number of the network of a real node that `tests/kubernetes/cluster.py` made; `None` where nodes are fake.
pub(crate) fn network_of_node(kubeconfig: &Path) -> Option<String> {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    text.split("https://10.250.").nth(1)?.split('.').next().map(str::to_owned)
}

impl Place {
    /// The namespace of the default tenant.
    pub(crate) fn namespace(&self) -> String {
        format!("{}default", self.config.namespace_prefix)
    }

    /// Another process on the same platform.
    pub(crate) async fn restarted(&self) -> Arc<KubernetesOrchestrator> {
        self.restarted_with(None).await
    }

    /// As [`Self::restarted`], where somebody knows which lines are kept.
    pub(crate) async fn restarted_with(&self, kept_lines: Option<Arc<dyn KeptLines>>) -> Arc<KubernetesOrchestrator> {
        self.another(self.config.clone(), kept_lines).await
    }

    /// Another process on the same platform, with settings of its own.
    pub(crate) async fn another(
        &self,
        config: KubernetesConfig,
        kept_lines: Option<Arc<dyn KeptLines>>,
    ) -> Arc<KubernetesOrchestrator> {
        let pull_credentials = self.credentials.clone();
        let options = KubernetesOptions { config, allowed_networks: Vec::new(), pull_credentials, kept_lines };
        KubernetesOrchestrator::start(options, self.images.clone(), self.sink.clone()).await.unwrap()
    }

    /// What autoscalers write the number of pods into, in the tenant's namespace.
    pub(crate) fn scales(&self) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("arco.internal", "v1", "ComponentScale");
        let kind = ApiResource::from_gvk_with_plural(&kind, "componentscales");
        Api::namespaced_with(self.client.clone(), &self.namespace(), &kind)
    }

    /// Objects of a type in the tenant's namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace())
    }
}

/// Runs a test on a platform of its own. `registry`: where nodes pull; `image`: made in the platform's stores.
pub(crate) async fn on_a_platform<F: Future<Output = ()>>(
    images: Images,
    image: ImageRef,
    registry: &str,
    credentials: Option<Arc<dyn PullCredentials>>,
    test: impl FnOnce(Arc<Place>) -> F,
) {
    let Some(kubeconfig) = kubeconfig() else { return };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let id = clock::fresh::<arco_model::id::InstanceId>();
    let usual = KubernetesConfig::default();
    let config = KubernetesConfig {
        kubeconfig: kubeconfig.clone(),
        namespace_prefix: format!("t{}-", &id.as_str()[10..]),
        registry: registry.to_owned(),
        user_namespaces: false,
        request_percent: 1,
        // Where programs really run every end takes that long: only the test of it waits.
        eviction_pause_s: if network_of_node(&kubeconfig).is_some() { 0 } else { usual.eviction_pause_s },
        ..usual
    };
    let file = Kubeconfig::read_from(&kubeconfig).unwrap();
    let found = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(found).unwrap();
    let pull_credentials = credentials.clone();
    let options =
        KubernetesOptions { config: config.clone(), allowed_networks: Vec::new(), pull_credentials, kept_lines: None };
    let (sink, logs) = LogSink::channel(1024);
    let driver = KubernetesOrchestrator::start(options, images.clone(), sink.clone()).await.unwrap();
    let place = Arc::new(Place { client, config, images, image, driver, logs: Mutex::new(logs), credentials, sink });
    let outcome = std::panic::AssertUnwindSafe(test(place.clone())).catch_unwind().await;
    let _ = place.driver.shutdown(outcome.is_err()).await; // a finding of the test goes first
    let namespaces: Api<Namespace> = Api::all(place.client.clone());
    let tenant = TenantName::default_tenant();
    let gone = namespaces.delete(&format!("{}{tenant}", place.config.namespace_prefix), &DeleteParams::default()).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    drop(gone);
}

/// Stores in memory with an image that nobody can pull, for nodes that run nothing.
pub(crate) async fn without_content() -> (Images, ImageRef) {
    let images = Images::new(Arc::new(MemoryMetadata::default()), Arc::new(MemoryBlobs::default()));
    let image = images.write("default/demo/web", &Image::default()).await.unwrap();
    (images, image)
}
