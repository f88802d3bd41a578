//! The suite that every driver must pass, on the fake.

pub(crate) use arco_orchestrator::contract::{caches, contract, one_shot, plan, reached, ready, until};
use arco_orchestrator::fake::FakeOrchestrator;

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let digest = arco_model::artifact::Digest::of(b"image");
    let image = arco_model::artifact::ImageRef { repository: "default/demo/web".to_owned(), digest };
    contract(FakeOrchestrator::new(), plan(image, &["serve"])).await;
}
