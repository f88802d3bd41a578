//! The leader's lock on a Lease of a real API server: the same suite as on the coordination stores.

mod control_plane {
    use crate::cluster::place::kubeconfig;
    use arco_config::KubernetesConfig;
    use arco_orchestrator_kubernetes::LeaseLock;
    use arco_store::clock;
    use arco_store::leader::{LeaderLock, contract};
    use k8s_openapi::api::coordination::v1::Lease;
    use kube::api::{Api, DeleteParams};
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use std::collections::BTreeSet;
    use std::sync::{Arc, Mutex};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lease_keeps_the_contract_of_locks() {
        let Some(kubeconfig) = kubeconfig() else { return };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = KubernetesConfig { kubeconfig: kubeconfig.clone(), ..KubernetesConfig::default() };
        let run = format!("{:016x}", clock::random());
        let names = Mutex::new(BTreeSet::new());
        let runtime = tokio::runtime::Handle::current();
        let make = |area: &str| {
            let (name, config, runtime) = (format!("{area}-{run}"), config.clone(), runtime.clone());
            names.lock().unwrap().insert(name.clone());
            move |me: &str, life_s: u64| {
                let lock = LeaseLock::new(&config, &name, me, life_s.try_into().unwrap());
                let lock = tokio::task::block_in_place(|| runtime.block_on(lock)).unwrap();
                Arc::new(lock) as Arc<dyn LeaderLock>
            }
        };
        contract::suite(make).await;
        let file = Kubeconfig::read_from(&kubeconfig).unwrap();
        let found = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let leases: Api<Lease> = Api::default_namespaced(kube::Client::try_from(found).unwrap());
        let names = names.into_inner().unwrap();
        assert_eq!(names.len(), 3);
        for name in names {
            let lease = leases.get(&name).await.unwrap();
            let spec = lease.spec.unwrap();
            assert_eq!(spec.holder_identity.as_deref(), Some(""), "given back");
            assert!(spec.lease_transitions.unwrap() >= 1);
            leases.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    }
}
