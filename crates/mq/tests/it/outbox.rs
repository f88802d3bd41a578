//! From operations to jobs.

use crate::{nothing, soon, take};
use arco_model::job::Topic;
use arco_model::operation::{Operation, OperationKind, OperationStatus};
use arco_model::time::Timestamp;
use arco_mq::Queue;
use arco_mq::outbox::Relay;
use arco_store::clock;
use arco_store::kv::MemoryKv;
use arco_store::sql::{MemoryMetadata, SharedMetadata};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

fn operation(created_at: u64) -> Operation {
    Operation {
        id: clock::fresh(),
        kind: OperationKind::Deploy,
        tenant: "default".parse().unwrap(),
        application: "shop".parse().unwrap(),
        component: "web".parse().unwrap(),
        component_id: clock::fresh(),
        status: OperationStatus::Pending,
        generation: 1,
        revision: None,
        revision_number: None,
        problem: None,
        topic: Topic::Builder,
        enqueued: false,
        cancel_asked: false,
        no_cache: false,
        build_ms: None,
        rollout_ms: None,
        created_at: Timestamp(created_at),
        rollout_at: None,
        ended_at: None,
        deadline: Timestamp(created_at + 60_000),
    }
}

#[tokio::test]
async fn each_written_operation_becomes_one_job() {
    let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
    let queue = Queue::new(Arc::new(MemoryKv::new()));
    let operations: Vec<_> = (0..230).map(operation).collect();
    for it in &operations {
        metadata.insert(it).await.unwrap();
    }
    let relay = Relay::new(metadata.clone(), queue.clone());
    assert_eq!(relay.pass().await.unwrap(), 230);
    assert_eq!(relay.pass().await.unwrap(), 0);
    assert_eq!(queue.depth(Topic::Builder).await.unwrap().waiting, 230);
    let leased = take(&queue).await;
    let request = &leased.job().request;
    assert_eq!(request.dedup_id, operations[0].id.as_str(), "oldest first");
    assert_eq!(request.key, operations[0].component_id.as_str());
    // The process died between enqueueing and noting it: the same job.
    let forget = |it: &mut Operation| std::mem::replace(&mut it.enqueued, false);
    metadata.modify::<Operation>(operations[0].id.as_str(), forget).await.unwrap();
    assert_eq!(relay.pass().await.unwrap(), 1);
    assert_eq!(queue.depth(Topic::Builder).await.unwrap().waiting, 229);
}

#[tokio::test]
async fn the_relay_wakes_when_the_bell_rings_and_stops() {
    let metadata: SharedMetadata = Arc::new(MemoryMetadata::default());
    let queue = Queue::new(Arc::new(MemoryKv::new()));
    let relay = Relay::new(metadata.clone(), queue.clone());
    let (bell, stop) = (relay.bell(), CancellationToken::new());
    let task = tokio::spawn(relay.run(stop.clone()));
    assert!(nothing(&queue).await);
    let written = operation(1);
    metadata.insert(&written).await.unwrap();
    bell.notify_one();
    assert_eq!(take(&queue).await.job().request.dedup_id, written.id.as_str());
    stop.cancel();
    soon(task).await.unwrap();
}
