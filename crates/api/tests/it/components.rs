//! Deploy, change, scale, roll back, delete: what each call writes, and what it refuses.

use crate::platform::{Platform, WEB, code};
use arco_api::wire::{RouteRequest, ScaleRequest, SpecPatch};
use arco_model::application::Application;
use arco_model::component::{Component, CronRun, Power};
use arco_model::id::RevisionId;
use arco_model::job::Topic;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::spec::autoscaling::Autoscaling;
use arco_model::spec::{Binding, ComponentKind};
use arco_model::status::Status;
use arco_model::time::Timestamp;
use arco_store::sql::{Batch, Query, RouteRow, SqlError};
use std::time::Duration;

fn env(name: &str, value: Option<&str>) -> SpecPatch {
    SpecPatch { env: [(name.to_owned(), value.map(str::to_owned))].into(), ..SpecPatch::default() }
}

fn bind(to: (&str, &str)) -> SpecPatch {
    let binding = Binding { application: to.0.parse().unwrap(), component: to.1.parse().unwrap(), alias: "IT".into() };
    SpecPatch { bindings: [("IT".to_owned(), Some(binding))].into(), ..SpecPatch::default() }
}

#[tokio::test]
async fn a_deploy_makes_what_is_missing_and_leaves_a_job_in_the_outbox() {
    let platform = Platform::start().await;
    let operation = platform.deploy(WEB, env("A", Some("1"))).await.unwrap();
    assert_eq!(
        (operation.kind, operation.status, operation.generation),
        (OperationKind::Deploy, OperationStatus::Pending, 1)
    );
    tokio::time::timeout(Duration::from_secs(60), platform.outbox.notified()).await.unwrap();
    let row = platform.metadata.get::<Operation>(&operation.id).await.unwrap().unwrap().value;
    assert_eq!((row.topic, row.enqueued), (Topic::Builder, false));
    assert!(row.deadline > row.created_at);
    let document = platform.client.component("default", WEB).await.unwrap();
    assert_eq!((document.generation, document.spec.env["A"].as_str(), document.urls.len()), (1, "1", 0));
    let list = platform.client.applications("default").await.unwrap();
    assert_eq!((list.len(), list[0].components[0].component.as_str()), (1, "web"));
}

#[tokio::test]
async fn a_second_build_at_the_same_time_is_refused_and_can_be_cancelled() {
    let platform = Platform::start().await;
    let first = platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    let error = platform.deploy(WEB, SpecPatch::default()).await.unwrap_err().body();
    assert_eq!((error.code.as_str(), error.operation.as_deref()), ("deploy_in_progress", Some(first.id.as_str())));
    assert!(error.advice.contains(&format!("arco operation cancel {}", first.id)));
    assert_eq!(platform.client.cancel(&first.id).await.unwrap().status, OperationStatus::Cancelled);
    platform.deploy(WEB, SpecPatch::default()).await.unwrap();
}

#[tokio::test]
async fn a_running_build_is_asked_to_end_and_a_rollout_is_not() {
    let platform = Platform::start().await;
    let operation = platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    let set = async |status| {
        let change = |it: &mut Operation| {
            it.status = status;
            it.enqueued = true;
            true
        };
        platform.metadata.modify::<Operation>(&operation.id, change).await.unwrap();
    };
    set(OperationStatus::Building).await;
    let cancelled = platform.client.cancel(&operation.id).await.unwrap();
    assert_eq!((cancelled.status, cancelled.cancel_asked), (OperationStatus::Building, true));
    let other = platform.running(("shop", "api"), SpecPatch::default()).await;
    let rolling = platform.client.patch("default", ("shop", "api"), &env("A", Some("1"))).await.unwrap();
    assert_eq!(code(platform.client.cancel(&rolling.id).await), "not_cancellable");
    assert_eq!(other.name.as_str(), "api");
}

#[tokio::test]
async fn a_change_of_what_runs_makes_a_revision_of_the_same_artifact() {
    let platform = Platform::start().await;
    let before = platform.running(WEB, SpecPatch::default()).await;
    let operation = platform.client.patch("default", WEB, &env("A", Some("1"))).await.unwrap();
    assert_eq!((operation.status, operation.revision), (OperationStatus::RollingOut, Some(2)));
    let after = platform.component(WEB).await;
    let (old, new) = (platform.desired(&before).await, platform.desired(&after).await);
    assert_eq!((after.generation, new.number, new.cause.as_str()), (before.generation + 1, 2, "env set"));
    assert_eq!((&new.artifact, new.operation_id.as_str()), (&old.artifact, operation.id.as_str()));
    assert_eq!((new.spec.env["A"].as_str(), old.spec.env.len()), ("1", 0));
    let row = platform.metadata.get::<Operation>(&operation.id).await.unwrap().unwrap().value;
    assert_eq!((row.topic, row.enqueued), (Topic::Controller, false));
    let same = platform.client.patch("default", WEB, &env("A", Some("1"))).await.unwrap();
    assert_eq!((same.status, same.revision), (OperationStatus::Succeeded, None));
    assert_eq!(platform.component(WEB).await.generation, after.generation);
}

#[tokio::test]
async fn a_change_before_the_first_build_waits_for_it() {
    let platform = Platform::start().await;
    platform.deploy(WEB, SpecPatch::default()).await.unwrap();
    let operation = platform.client.patch("default", WEB, &env("A", Some("1"))).await.unwrap();
    assert_eq!((operation.status, operation.revision), (OperationStatus::Succeeded, None));
    assert_eq!(platform.component(WEB).await.spec.env["A"], "1");
}

#[tokio::test]
async fn what_a_failed_deploy_asked_for_does_not_come_with_a_later_change() {
    let platform = Platform::start().await;
    platform.running(WEB, env("A", Some("1"))).await;
    let failed = platform.deploy(WEB, env("A", Some("2"))).await.unwrap();
    let fail = |it: &mut Operation| {
        it.status = OperationStatus::Failed;
        true
    };
    platform.metadata.modify::<Operation>(&failed.id, fail).await.unwrap();
    platform.client.patch("default", WEB, &env("B", Some("1"))).await.unwrap();
    let component = platform.component(WEB).await;
    let runs = platform.desired(&component).await.spec.env;
    assert_eq!((component.spec.env["A"].as_str(), runs["A"].as_str(), runs["B"].as_str()), ("2", "1", "1"));
}

#[tokio::test]
async fn scaling_makes_a_revision_only_when_instances_change() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let more = ScaleRequest { replicas: Some(3), ..ScaleRequest::default() };
    let operation = platform.client.scale("default", WEB, &more).await.unwrap();
    assert_eq!((operation.kind, operation.revision), (OperationKind::Scale, None));
    let larger = ScaleRequest { memory_mb: Some(256), ..ScaleRequest::default() };
    assert_eq!(platform.client.scale("default", WEB, &larger).await.unwrap().revision, Some(2));
    let component = platform.component(WEB).await;
    assert_eq!((component.spec.replicas, component.last_revision_number), (3, 2));
    assert_eq!(code(platform.client.scale("default", WEB, &ScaleRequest::default()).await), "scale_empty");
    let many = ScaleRequest { replicas: Some(101), ..ScaleRequest::default() };
    assert_eq!(code(platform.client.scale("default", WEB, &many).await), "replicas_invalid");
}

#[tokio::test]
async fn a_number_that_follows_load_is_not_set_by_hand() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    let scale = |request: ScaleRequest| {
        let client = platform.client.clone();
        async move { client.scale("default", WEB, &request).await }
    };
    let by_load = ScaleRequest { min_replicas: Some(2), max_replicas: Some(5), ..ScaleRequest::default() };
    let operation = scale(by_load).await.unwrap();
    assert_eq!((operation.kind, operation.revision), (OperationKind::Scale, None), "instances stay");
    let component = platform.component(WEB).await;
    assert_eq!(component.spec.autoscaling, Some(Autoscaling::by_cpu(2, 5)));
    assert_eq!(platform.client.component("default", WEB).await.unwrap().replicas, 2);

    let three = ScaleRequest { replicas: Some(3), ..ScaleRequest::default() };
    assert_eq!(code(scale(three.clone()).await), "follows_load");
    let patch = SpecPatch { replicas: Some(3), ..SpecPatch::default() };
    assert_eq!(code(platform.client.patch("default", WEB, &patch).await), "follows_load");
    assert_eq!(code(platform.deploy(WEB, patch).await), "follows_load");
    scale(ScaleRequest { cpu_percent: Some(60), ..ScaleRequest::default() }).await.unwrap();
    let asked = platform.component(WEB).await.spec.autoscaling.unwrap();
    assert_eq!((asked.max_replicas, asked.cpu_percent), (5, Some(60)), "what is not named stays");

    scale(ScaleRequest { autoscaling: Some(false), ..ScaleRequest::default() }).await.unwrap();
    let component = platform.component(WEB).await;
    assert_eq!((component.spec.autoscaling, component.spec.replicas), (None, 2), "as many as there were to be");
    scale(three).await.unwrap();
}

#[tokio::test]
async fn a_rollback_points_back_and_keeps_the_number_of_instances() {
    let platform = Platform::start().await;
    platform.running(WEB, env("A", Some("1"))).await;
    platform.client.patch("default", WEB, &env("A", Some("2"))).await.unwrap();
    platform
        .client
        .scale("default", WEB, &ScaleRequest { replicas: Some(4), ..ScaleRequest::default() })
        .await
        .unwrap();
    let operation = platform.client.rollback("default", WEB, None).await.unwrap();
    assert_eq!((operation.kind, operation.revision), (OperationKind::Rollback, Some(1)));
    let component = platform.component(WEB).await;
    assert_eq!((component.spec.env["A"].as_str(), component.spec.replicas), ("1", 4));
    assert_eq!(code(platform.client.rollback("default", WEB, None).await), "no_older_revision");
    assert_eq!(code(platform.client.rollback("default", WEB, Some(1)).await), "revision_is_desired");
    assert_eq!(code(platform.client.rollback("default", WEB, Some(9)).await), "revision_not_found");
    assert_eq!(platform.client.rollback("default", WEB, Some(2)).await.unwrap().revision, Some(2));
    let revisions = platform.client.revisions("default", WEB).await.unwrap();
    assert_eq!(
        revisions.iter().map(|it| (it.number, it.desired, it.serving)).collect::<Vec<_>>(),
        [(2, true, false), (1, false, true)]
    );
}

#[tokio::test]
async fn power_is_switched() {
    let platform = Platform::start().await;
    platform.running(WEB, SpecPatch::default()).await;
    for (verb, kind, power, restarts) in [
        ("stop", OperationKind::Stop, Power::Off, 0),
        ("start", OperationKind::Start, Power::On, 0),
        ("restart", OperationKind::Restart, Power::On, 1),
    ] {
        let operation = platform.client.power("default", WEB, verb).await.unwrap();
        let component = platform.component(WEB).await;
        assert_eq!((operation.kind, component.power, component.restarts_asked), (kind, power, restarts));
        assert_eq!(operation.generation, component.generation);
    }
    assert_eq!(code(platform.client.power("default", WEB, "explode").await), "path_unknown");
}

#[tokio::test]
async fn who_starts_what_never_worked_is_told() {
    let platform = Platform::start().await;
    let first = platform.running(WEB, SpecPatch::default()).await;
    // What the controller writes at its looks.
    let seen = async |healthy: Option<&RevisionId>, status| {
        let see = |row: &mut Component| {
            row.observed.observed_generation = row.generation;
            row.observed.healthy_revision = healthy.cloned();
            row.observed.report.status = status;
            true
        };
        platform.metadata.modify::<Component>(first.id.as_str(), see).await.unwrap();
    };
    let power = async |verb| platform.client.power("default", WEB, verb).await.unwrap().warnings;
    let shown = async || platform.client.component("default", WEB).await.unwrap().warnings;
    let (worked, nothing) = (first.desired_revision.as_ref(), Vec::<String>::new());

    seen(worked, Status::Running).await;
    assert_eq!(power("restart").await, nothing, "it works");
    platform.client.patch("default", WEB, &env("A", Some("1"))).await.unwrap();
    assert_eq!(power("restart").await, nothing, "nobody has looked at the change yet");
    seen(worked, Status::Upgrading).await;
    assert_eq!(power("restart").await, nothing, "the change is on its way");
    seen(worked, Status::Degraded).await;
    let told = power("restart").await;
    assert!(
        told.len() == 1 && told[0].contains("revision 2") && told[0].contains("arco rollback shop/web 1"),
        "{told:?}"
    );
    seen(worked, Status::Degraded).await;
    assert_eq!(shown().await, nothing, "its status says why it is not well");
    assert_eq!(power("stop").await, nothing);
    seen(worked, Status::Stopped).await;
    assert_eq!(shown().await, told);
    assert_eq!(power("start").await, told);
    seen(None, Status::Abnormal).await;
    assert_eq!(power("restart").await, nothing, "nothing is known to have worked");
}

#[tokio::test]
async fn a_component_that_others_call_goes_only_with_them() {
    let platform = Platform::start().await;
    platform.running(("shop", "db"), SpecPatch::default()).await;
    platform.running(WEB, bind(("shop", "db"))).await;
    assert_eq!(code(platform.client.delete_component("default", ("shop", "db"), false).await), "bound_to");
    assert_eq!(code(platform.client.patch("default", ("shop", "db"), &bind(WEB)).await), "binding_cycle");
    assert_eq!(code(platform.deploy(("shop", "x"), bind(("shop", "none"))).await), "binding_target_missing");
    let operations = platform.client.delete_application("default", "shop", true).await.unwrap();
    assert_eq!(operations.len(), 2);
    assert_eq!(platform.component(WEB).await.power, Power::Deleting { keep_volumes: true });
    let again = platform.client.delete_component("default", WEB, true).await.unwrap();
    assert!(operations.iter().any(|it| it.id == again.id), "the same operation answers again");
    assert_eq!(code(platform.client.patch("default", WEB, &env("A", None)).await), "being_deleted");
    assert_eq!(code(platform.deploy(WEB, SpecPatch::default()).await), "being_deleted");
}

#[tokio::test]
async fn what_goes_gets_nothing_new_and_what_gets_something_new_does_not_go() {
    let platform = Platform::start().await;
    let component = platform.running(WEB, SpecPatch::default()).await;
    let application = platform.metadata.get::<Application>(component.application_id.as_str()).await.unwrap().unwrap();
    platform.deploy(("shop", "api"), SpecPatch::default()).await.unwrap();
    // As a controller that saw no other component before.
    let mut batch = Batch::default();
    batch.delete(&application);
    assert!(matches!(platform.metadata.commit(batch).await, Err(SqlError::Conflict { .. })));

    platform.client.delete_component("default", WEB, false).await.unwrap();
    let route: RouteRequest = serde_json::from_value(serde_json::json!({ "hosts": ["shop.test"] })).unwrap();
    assert_eq!(code(platform.client.add_route("default", WEB, &route).await), "being_deleted");
    assert!(platform.metadata.list::<RouteRow>(&Query::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn cron_components_say_when_they_run_and_have_no_url() {
    let platform = Platform::start().await;
    let schedule = Some(Some("0 4 1 1 *".to_owned()));
    let patch = SpecPatch { kind: Some(ComponentKind::Cron), schedule, ..SpecPatch::default() };
    let component = platform.running(WEB, patch).await;
    let shown = platform.client.component("default", WEB).await.unwrap();
    assert!(shown.urls.is_empty(), "{:?}", shown.urls);
    let runs = shown.runs.unwrap();
    assert_eq!((runs.schedule.as_str(), runs.last_at), ("0 4 1 1 *", None));
    assert!(runs.next_at.unwrap().contains("-01-01T04:00:00"));
    let run = CronRun { scheduled_at: Timestamp(0), ended_at: Some(Timestamp(5_000)), exit_status: Some(3) };
    let set = |row: &mut Component| {
        row.observed.last_run = Some(run.clone());
        true
    };
    platform.metadata.modify::<Component>(component.id.as_str(), set).await.unwrap();
    let runs = platform.client.component("default", WEB).await.unwrap().runs.unwrap();
    assert_eq!(runs.last_at.as_deref(), Some(Timestamp(0).rfc3339().as_str()));
    assert_eq!(runs.last_exit_status, Some(3));
    platform.running(("shop", "other"), SpecPatch::default()).await;
    let other = platform.client.component("default", ("shop", "other")).await.unwrap();
    assert!(other.runs.is_none() && !other.urls.is_empty());
}

#[tokio::test]
async fn names_and_specs_are_checked() {
    let platform = Platform::start().await;
    let cron = SpecPatch { kind: Some(ComponentKind::Cron), ..SpecPatch::default() };
    assert_eq!(code(platform.deploy(("Shop", "web"), SpecPatch::default()).await), "name_invalid");
    assert_eq!(code(platform.deploy(("shop", "a--b"), SpecPatch::default()).await), "name_invalid");
    assert_eq!(code(platform.deploy(WEB, cron).await), "schedule_missing");
    assert_eq!(code(platform.deploy(WEB, env("A-B", Some("1"))).await), "env_name_invalid");
    assert_eq!(code(platform.client.component("default", WEB).await), "not_found");
    assert_eq!(code(platform.client.application("default", "shop").await), "not_found");
    assert_eq!(code(platform.client.applications("nobody").await), "not_found");
    platform.running(WEB, SpecPatch::default()).await;
    let job = SpecPatch { kind: Some(ComponentKind::Job), ..SpecPatch::default() };
    assert_eq!(code(platform.client.patch("default", WEB, &job).await), "kind_fixed");
    platform.deploy(("c", "a-b"), SpecPatch::default()).await.unwrap();
    assert_eq!(platform.client.operations("default", None, None, false, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn changes_go_through_although_another_writer_is_busy() {
    let platform = Platform::start().await;
    let component = platform.running(WEB, SpecPatch::default()).await;
    let metadata = platform.metadata.clone();
    let noise = tokio::spawn(async move {
        for round in 0..2000u32 {
            let write = |it: &mut arco_model::component::Component| {
                it.observed.ready_replicas = round;
                true
            };
            metadata.modify(component.id.as_str(), write).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    for round in 0..20 {
        platform.client.patch("default", WEB, &env("A", Some(&round.to_string()))).await.unwrap();
    }
    noise.await.unwrap();
    assert_eq!(platform.component(WEB).await.last_revision_number, 21);
}

#[tokio::test]
async fn a_life_on_the_real_database() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = arco_store::sql::SeaOrmMetadata::open(&folder.path().join("metadata.db")).await.unwrap();
    let platform = Platform::over(std::sync::Arc::new(metadata)).await;
    platform.running(WEB, env("A", Some("1"))).await;
    platform.client.patch("default", WEB, &env("A", Some("2"))).await.unwrap();
    platform
        .client
        .scale("default", WEB, &ScaleRequest { replicas: Some(2), ..ScaleRequest::default() })
        .await
        .unwrap();
    platform.client.rollback("default", WEB, None).await.unwrap();
    platform.client.power("default", WEB, "stop").await.unwrap();
    let document = platform.client.component("default", WEB).await.unwrap();
    assert_eq!((document.desired_revision, document.replicas, document.power), (Some(1), 2, Power::Off));
    let operations = platform.client.operations("default", Some("shop"), None, false, 10).await.unwrap();
    assert_eq!(operations.len(), 5);
    assert_eq!(platform.client.applications("default").await.unwrap().len(), 1);
    platform.client.delete_application("default", "shop", false).await.unwrap();
}
