//! Runs begin once, and every one of them has an end.

use super::*;
use crate::fixture::World;
use arco_model::observed::ExitFacts;

const AT: Timestamp = Timestamp(60_000);

fn result(status: i32, asked: bool, timed_out: bool) -> Result<OneShotResult, Error> {
    let exit = ExitFacts { status, asked, ..ExitFacts::default() };
    Ok(OneShotResult { exit, timed_out, layer: None })
}

#[test]
fn every_end_of_a_run_is_told() {
    let refused = || Err(Error::Refused("no image".to_owned()));
    for (outcome, cut, status, told) in [
        (result(0, false, false), false, Some(0), "succeeded after 2 s"),
        (result(3, false, false), false, Some(3), "ended with status 3 after 2 s"),
        (result(3, false, false), true, Some(3), "ended with status 3"),
        (result(137, true, true), false, Some(137), "longer than 86400 s"),
        (result(143, true, false), true, None, "cut off"),
        (refused(), true, None, "cut off"),
        (refused(), false, Some(-1), "could not start: no image"),
    ] {
        let end = End::of(&outcome, cut);
        assert_eq!(end.status(), status, "{end:?}");
        let line = end.told(AT, 1_500);
        assert!(line.starts_with("the run of 1970-01-01T00:01:00") && line.contains(told), "{line}");
    }
}

#[tokio::test]
async fn a_run_that_ends_by_itself_is_noted_and_told() {
    let mut world = World::new();
    let component = world.component(ComponentKind::Cron).await;
    world.orchestrator.script_runs(|_| {
        result(4, false, false).map(|it| (vec!["working".to_owned()], it)).map_err(|it| it.to_string())
    });
    world.controller.run_cron(&component, AT, &CancellationToken::new()).await.unwrap();
    let run = world.row(&component).await.observed.last_run.unwrap();
    assert_eq!((run.scheduled_at, run.exit_status, run.ended_at.is_some()), (AT, Some(4), true));
    let said = world.said();
    assert!(said.len() == 2 && said[0] == "working" && said[1].contains("ended with status 4"), "{said:?}");
    // The same time again, as by a leader that did not see it: nothing runs.
    world.controller.run_cron(&component, AT, &CancellationToken::new()).await.unwrap();
    assert_eq!(world.orchestrator.ran().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_ends_with_the_leader_that_began_it() {
    let mut world = World::new();
    let component = world.component(ComponentKind::Cron).await;
    world.orchestrator.hold_runs();
    let leads = CancellationToken::new();
    leads.cancel();
    world.controller.run_cron(&component, AT, &leads).await.unwrap();
    let run = world.row(&component).await.observed.last_run.unwrap();
    assert_eq!((run.exit_status, run.ended_at.is_some()), (None, true));
    assert!(world.said().concat().contains("cut off"));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_run_hides_no_later_one() {
    let world = World::new();
    let component = world.component(ComponentKind::Cron).await;
    world.orchestrator.hold_runs();
    let (leads, later) = (CancellationToken::new(), Timestamp(120_000));
    leads.cancel();
    let next_leader = async {
        while open_run(&world.row(&component).await) != Some(AT) {
            tokio::task::yield_now().await;
        }
        assert!(world.controller.claim_run(&component, later).await.unwrap());
    };
    let (ended, ()) = tokio::join!(world.controller.run_cron(&component, AT, &leads), next_leader);
    ended.unwrap();
    assert_eq!(open_run(&world.row(&component).await), Some(later));
}

#[tokio::test]
async fn what_an_earlier_leader_left_without_an_end_is_closed_once() {
    let mut world = World::new();
    let mut component = world.component(ComponentKind::Cron).await;
    assert!(world.controller.claim_run(&component, AT).await.unwrap());
    component = world.row(&component).await;
    assert_eq!(open_run(&component), Some(AT));
    world.controller.close_run(&component, AT).await;
    let closed = world.row(&component).await;
    assert_eq!(open_run(&closed), None);
    assert_eq!(world.said().len(), 1);
    // Whoever read the row before sees that it is done; and a later run is another one.
    world.controller.close_run(&component, AT).await;
    assert!(world.controller.claim_run(&closed, Timestamp(120_000)).await.unwrap());
    world.controller.close_run(&component, AT).await;
    assert_eq!(open_run(&world.row(&component).await), Some(Timestamp(120_000)));
    assert!(world.said().is_empty());
}
