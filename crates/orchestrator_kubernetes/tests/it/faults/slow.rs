//! Faults that last: longer than the pauses between tries grow, until a credential is read again, over a whole rollout.
//! They take minutes, so `make test-cluster` runs them, and `make test` does not.

use super::control_plane::{PATIENCE, as_asked, met, on_a_faulty_server};
use crate::cluster::control_plane::let_go;
use crate::faulty::Fault;
use arco_model::observed::{Observed, RolloutFacts};
use arco_model::plan::WorkloadPlan;
use arco_orchestrator::contract::{in_time, plan, ready, until_within};
use arco_orchestrator::{Orchestrator, Removal};
use std::time::{Duration, Instant};

/// Waits until a plan is reached, however long the pause was that had begun.
async fn reached_at_last(driver: &dyn Orchestrator, asked: &WorkloadPlan) {
    let is_reached = |it: &Observed| it.plan == asked.fingerprint() && it.rollout == RolloutFacts::Done;
    until_within(PATIENCE, driver, &asked.component, "the plan is reached", is_reached).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_was_away_for_long_is_found_again() {
    on_a_faulty_server(|place, driver, faulty| async move {
        let mut asked = plan(place.image.clone(), &["serve"]);
        driver.apply(&asked).await.unwrap();
        let before = as_asked(&place, &driver, &asked).await;
        faulty.fail(Fault::Down);
        asked.replicas = 3;
        driver.apply(&asked).await.unwrap();
        // Pauses are at their longest, which is 30 s.
        let deadline = Instant::now() + in_time(2 * PATIENCE);
        while faulty.longest_pause() < Duration::from_secs(20) {
            assert!(Instant::now() < deadline, "tries do not grow apart: {:?}", faulty.longest_pause());
            tokio::time::sleep(Duration::from_millis(100)).await; // the pace of looking
        }
        let seen = driver.observe(&asked.component).await.unwrap();
        assert_eq!(ready(&seen), ready(&before), "what was known stays known: {seen:#?}");
        faulty.fail(Fault::None);
        reached_at_last(driver.as_ref(), &asked).await;
        let after = as_asked(&place, &driver, &asked).await;
        assert!(ready(&after).is_superset(&ready(&before)), "what ran stays");
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_credential_is_read_from_its_file() {
    on_a_faulty_server(|place, driver, faulty| async move {
        let mut asked = plan(place.image.clone(), &["serve"]);
        driver.apply(&asked).await.unwrap();
        as_asked(&place, &driver, &asked).await;
        faulty.fail(Fault::Replaced);
        asked.replicas = 3;
        driver.apply(&asked).await.unwrap();
        met(&faulty, 3).await;
        assert_eq!(ready(&driver.observe(&asked.component).await.unwrap()).len(), 1, "the first one is not good");
        std::fs::write(&faulty.token, "second").unwrap();
        reached_at_last(driver.as_ref(), &asked).await;
        as_asked(&place, &driver, &asked).await;
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_through_a_storm() {
    on_a_faulty_server(|place, driver, faulty| async move {
        let mut asked = plan(place.image.clone(), &["serve"]);
        asked.replicas = 2;
        driver.apply(&asked).await.unwrap();
        let mut before = as_asked(&place, &driver, &asked).await;
        for fault in [Fault::Overloaded, Fault::Conflicts] {
            faulty.fail(fault);
            asked.template.env.insert("COLOUR".to_owned(), format!("{fault:?}"));
            driver.apply(&asked).await.unwrap();
            let after = let_go(driver.as_ref(), &asked).await;
            assert!(ready(&after).len() == 2 && ready(&after).is_disjoint(&ready(&before)), "{fault:?}: {after:#?}");
            assert!(faulty.failed() > 0, "{fault:?}");
            faulty.fail(Fault::None);
            before = as_asked(&place, &driver, &asked).await;
        }
        driver.remove(&asked.component, &Removal::Everything).await.unwrap();
    })
    .await;
}
