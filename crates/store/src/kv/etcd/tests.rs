//! The driver when members fail: real ones that are stopped, killed and frozen, and addresses that refuse, say nothing,
//! or do not even take a connection.

use super::members::{Call, Members};
use super::{EtcdKv, failed, watch};
use crate::kv::{Compare, Event, KvError, Operation, Range, SharedKv, Txn, Watch};
use arco_etcd_proto::etcdserverpb::watch_server::{self, WatchServer};
use arco_etcd_proto::etcdserverpb::{WatchRequest, WatchResponse};
use arco_testkit::servers::{self, RestartableEtcd};
use etcd_client::{WatchClient, WatchOptions};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver, and what of it chooses.
async fn driver(urls: &[&str]) -> (SharedKv, Arc<Members>) {
    let urls: Vec<String> = urls.iter().map(|it| (*it).to_owned()).collect();
    let kv = EtcdKv::connect(&urls, None).await.unwrap();
    let members = kv.members.clone();
    (Arc::new(kv), members)
}

/// The driver of a real etcd, when its members can do something.
async fn driver_of(members: &[RestartableEtcd]) -> (SharedKv, Arc<Members>) {
    let urls: Vec<&str> = members.iter().map(|it| it.url.as_str()).collect();
    let (kv, asked) = driver(&urls).await;
    can_write(&kv, "/begun").await;
    (kv, asked)
}

/// Waits until the members agree on a leader; returns how many writes failed meanwhile.
async fn can_write(kv: &SharedKv, key: &str) -> usize {
    let (began, mut failed) = (Instant::now(), 0);
    while let Err(error) = kv.put(key, Vec::new(), None).await {
        assert!(began.elapsed() < PATIENCE, "{error}");
        failed += 1;
    }
    failed
}

fn leader(members: &[RestartableEtcd]) -> usize {
    arco_testkit::until("one of the members leads", 60, || members.iter().position(RestartableEtcd::leads))
}

/// Waits until a member alone knows a key.
async fn has_caught_up(member: &RestartableEtcd, key: &str) {
    let (own, _) = driver(&[&member.url]).await;
    let began = Instant::now();
    while !matches!(own.get(key).await, Ok(Some(_))) {
        assert!(began.elapsed() < PATIENCE, "{} does not come back", member.url);
    }
}

/// Reads and writes, of which none fails. It begins with a read: only that may be asked again when it was under way at
/// the moment at which its member went.
async fn none_fails(kv: &SharedKv, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let read = kv.get("/n/0000").await;
        read.unwrap_or_else(|error| panic!("read {number}: {error}"));
        let written = kv.put(&format!("/n/{number:04}"), b"v".to_vec(), None).await;
        written.unwrap_or_else(|error| panic!("write {number}: {error}"));
    }
}

/// What [`none_fails`] wrote is told, each once and in order.
async fn are_told(watch: &mut Watch, numbers: std::ops::Range<u32>) {
    let mut wanted = numbers.map(|it| format!("/n/{it:04}")).peekable();
    while wanted.peek().is_some() {
        let batch = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a batch in time");
        for event in batch.expect("the watch goes on").unwrap().events {
            let Event::Put(it) = event else { panic!("nothing was deleted") };
            assert_eq!(Some(String::from_utf8(it.key).unwrap()), wanted.next());
        }
    }
}

fn numbers() -> Range {
    Range::Prefix(b"/n/".to_vec())
}

/// A driver with its members, the place of one that does not lead, and a watch there that was told of the first number.
async fn watching_a_follower(members: &[RestartableEtcd]) -> (SharedKv, Arc<Members>, usize, Watch) {
    let (kv, asked) = driver_of(members).await;
    let follower = (leader(members) + 1) % members.len();
    asked.begin_at(follower);
    let mut watch = kv.watch(numbers(), None).await.unwrap();
    kv.put("/n/0000", b"v".to_vec(), None).await.unwrap();
    are_told(&mut watch, 0..1).await;
    (kv, asked, follower, watch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_killed_fails_no_call() {
    let Some(mut members) = RestartableEtcd::members(3) else { return };
    let (kv, asked) = driver_of(&members).await;
    let leader = leader(&members);
    let follower = (leader + 1) % 3;

    asked.begin_at(follower);
    let mut watch = kv.watch(numbers(), None).await.unwrap();
    let lease = kv.lease_grant(3600).await.unwrap();
    members[follower].kill();
    none_fails(&kv, 0..500).await;
    are_told(&mut watch, 0..500).await;
    kv.lease_keep_alive(lease).await.unwrap();

    // With the leader goes what only a leader can do, until there is another one.
    members[follower].boot();
    has_caught_up(&members[follower], "/n/0499").await;
    asked.begin_at(leader);
    kv.get("/begun").await.unwrap();
    members[leader].kill();
    let began = Instant::now();
    let failed = can_write(&kv, "/elected").await;
    eprintln!("{failed} writes failed in the {} ms until there was another leader", began.elapsed().as_millis());
    none_fails(&kv, 500..1000).await;
    are_told(&mut watch, 500..1000).await;
    kv.lease_keep_alive(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_frozen_fails_no_read_and_is_left() {
    let Some(members) = RestartableEtcd::members(3) else { return };
    let (kv, _, follower, mut watch) = watching_a_follower(&members).await;
    members[follower].freeze();
    none_fails(&kv, 1..500).await;
    // Its stream is there still, and dead: the pings on it are not answered.
    are_told(&mut watch, 1..500).await;
    members[follower].thaw();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_leader_ends_its_watches() {
    let Some(members) = RestartableEtcd::members(3) else { return };
    let (kv, asked, follower, mut watch) = watching_a_follower(&members).await;

    // One as the driver opens it, to see what becomes of it.
    let open = |mut client: WatchClient, key: &'static str| async move {
        client.watch(key, Some(WatchOptions::new().with_prefix())).await
    };
    let call = Call { step: "watch", repeatable: true };
    asked.begin_at(follower);
    let (at, mut stream) = asked.ask(call, "/quiet/", open, failed(call, 0, 0)).await.unwrap();
    assert_eq!(at, follower);
    assert!(stream.message().await.unwrap().unwrap().created());
    // It says that it is alive when it is asked.
    stream.request_progress().await.unwrap();
    let alive = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a word in time").unwrap().unwrap();
    assert!(alive.watch_id() < 0 && alive.events().is_empty(), "{alive:?}");

    let others = members.iter().enumerate().filter(|(it, _)| *it != follower).map(|(_, it)| it);
    others.clone().for_each(RestartableEtcd::freeze);
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                ended => return ended,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("its end in time");
    assert!(ended.is_err(), "it has no leader: {ended:?}");

    others.for_each(RestartableEtcd::thaw);
    can_write(&kv, "/n/0001").await;
    are_told(&mut watch, 1..2).await;
}

/// Takes watches, and then says nothing any more.
struct Mute;

#[tonic::async_trait]
impl watch_server::Watch for Mute {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, _: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, receiver) = mpsc::channel(1);
        let created = WatchResponse { created: true, ..WatchResponse::default() };
        responses.send(Ok(created)).await.unwrap();
        tokio::spawn(async move { responses.closed().await });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_leaves_a_stream_that_says_nothing() {
    let Some(real) = RestartableEtcd::start() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(WatchServer::new(Mute));
    let _server = AbortOnDropHandle::new(tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener))));
    let (own, _) = driver(&[&real.url]).await;
    let at = own.put("/a", b"1".to_vec(), None).await.unwrap();
    let (_kv, members) = driver(&[&mute, &real.url]).await;
    members.begin_at(0);
    let mut watch = watch::start(members, Range::Key(b"/a".to_vec()), at, Duration::from_millis(100));
    assert_eq!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap().revision, at);
    // The other one is quiet, too, but says that it is alive.
    let next = own.put("/a", b"2".to_vec(), None).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap().revision, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_refuses_is_passed_over_by_every_call() {
    let Some(real) = RestartableEtcd::start() else { return };
    let refuses = format!("http://127.0.0.1:{}", servers::free_port());
    let (kv, members) = driver(&[&refuses, &real.url]).await;
    members.begin_at(0);
    let at = kv.put("/a", b"1".to_vec(), None).await.unwrap();
    members.begin_at(0);
    assert_eq!(kv.get("/a").await.unwrap().unwrap().mod_revision, at);
    members.begin_at(0);
    let mut watch = kv.watch(Range::Key(b"/a".to_vec()), Some(at)).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap().revision, at);
    members.begin_at(0);
    let lease = kv.lease_grant(60).await.unwrap();
    members.begin_at(0);
    let txn = Txn {
        compare: vec![Compare::ModRevision(b"/a".to_vec(), at)],
        success: vec![Operation::Put { key: b"/b".to_vec(), value: b"2".to_vec(), lease: Some(lease) }],
        failure: Vec::new(),
    };
    let done = kv.txn(txn).await.unwrap();
    assert!(done.succeeded);
    members.begin_at(0);
    assert_eq!(kv.lease_keep_alive(lease).await.unwrap(), 60);
    members.begin_at(0);
    kv.lease_revoke(lease).await.unwrap();
    assert!(kv.get("/b").await.unwrap().is_none());
    members.begin_at(0);
    kv.compact(done.revision).await.unwrap();
    // What a member answers is not asked of another one.
    let gone = kv.range(Range::Key(b"/a".to_vec()), 1, Some(at)).await.unwrap_err();
    assert!(matches!(gone, KvError::Compacted { .. }), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_says_nothing_is_passed_over_by_what_may_be_done_twice() {
    let Some(real) = RestartableEtcd::start() else { return };
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (format!("http://{}", silent.local_addr().unwrap()), silent);
    let (kv, members) = driver(&[&silent.0, &real.url]).await;
    members.begin_at(0);
    assert!(kv.get("/a").await.unwrap().is_none());
    members.begin_at(0);
    let error = kv.put("/a", b"1".to_vec(), None).await.unwrap_err();
    let wanted = format!("failed to write: {}: no answer within 5 s; it may have been done", silent.0);
    assert!(error.to_string().ends_with(&wanted), "{error}");
    kv.put("/a", b"2".to_vec(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_wait_once_for_a_connection_that_does_not_come() {
    let Some(real) = RestartableEtcd::start() else { return };
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Once its queue is full, the kernel answers nobody who wants to connect.
    let mut queue = Vec::new();
    while let Ok(it) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queue.push(it);
        assert!(queue.len() < 1000, "the queue is never full");
    }
    let (kv, members) = driver(&[&format!("http://{address}"), &real.url]).await;
    members.begin_at(0);
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..20 {
        let kv = kv.clone();
        writers.spawn(async move { kv.put(&format!("/{number}"), Vec::new(), None).await });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_call_that_is_not_answered_ends() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (kv, _) = driver(&[&address]).await;
    let error = tokio::time::timeout(PATIENCE, kv.get("/a")).await.expect("it ends").unwrap_err();
    let wanted = format!("the coordination store failed to read: http://{address}: no answer within 5 s");
    assert_eq!(error.to_string(), wanted);
}

#[tokio::test]
async fn all_that_were_asked_are_named() {
    let [one, other] = [(); 2].map(|()| format!("http://127.0.0.1:{}", servers::free_port()));
    let (kv, members) = driver(&[&one, &other]).await;
    members.begin_at(0);
    let error = kv.put("/a", Vec::new(), None).await.unwrap_err().to_string();
    let told = error.strip_prefix(&format!("the coordination store failed to write: {one}: "));
    assert!(told.is_some_and(|it| it.contains("refused") && it.contains(&format!("; {other}: "))), "{error}");
    for count in [0, 65] {
        let many: Vec<String> = (0..count).map(|it| format!("host-{it}:2379")).collect();
        assert!(EtcdKv::connect(&many, None).await.is_err(), "{count} addresses");
    }
}
