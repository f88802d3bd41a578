//! The authority survives a restart and a half-written start; leaves say whom they name.

use super::*;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::os::unix::fs::PermissionsExt as _;

#[test]
fn the_authority_is_made_once_and_kept_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let first = Pki::open(&path).unwrap();
    assert_eq!(Pki::open(&path).unwrap().authority_pem(), first.authority_pem());
    for name in ["ca.pem", "ca.key"] {
        assert_eq!(std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_missing_certificate_is_made_from_the_key_but_never_the_other_way_round() {
    let folder = tempfile::tempdir().unwrap();
    Pki::open(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("ca.pem")).unwrap();
    Pki::open(folder.path()).unwrap();
    std::fs::remove_file(folder.path().join("ca.key")).unwrap();
    assert!(matches!(Pki::open(folder.path()), Err(PkiError::KeyMissing(_))));
}

#[test]
fn a_client_certificate_names_its_subject() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path()).unwrap();
    let limited = Subject { name: "ann".into(), role: "developer".into(), tenants: vec!["a".into(), "b".into()] };
    for subject in [Subject::admin(), limited] {
        let leaf = pki.client(&subject).unwrap();
        let der = CertificateDer::from_pem_slice(leaf.certificate_pem.as_bytes()).unwrap();
        assert_eq!(Subject::of(&der).unwrap(), subject);
        assert!(leaf.renew_at < leaf.expires_at);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leaf_is_renewed_when_half_of_its_life_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::open(folder.path()).unwrap();
    let mut old = pki.server(&["localhost".to_owned()]).unwrap();
    old.renew_at = clock::now();
    let token = tokio_util::sync::CancellationToken::new();
    let applied = std::sync::Mutex::new(Vec::new());
    let apply = |leaf: &Leaf| {
        applied.lock().unwrap().push(leaf.certificate_pem.clone());
        token.cancel();
        Ok(())
    };
    keep_fresh(old.clone(), || pki.server(&["localhost".to_owned()]), apply, token.clone()).await;
    let applied = applied.into_inner().unwrap();
    assert_eq!(applied.len(), 1);
    assert_ne!(applied[0], old.certificate_pem);
}
