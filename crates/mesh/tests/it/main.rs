//! DNS with real packets: answers by asker, forwarding, a moved listener, a silent store.

#![allow(clippy::unwrap_used)] // Helpers of tests fail by panicking.

use arco_daemon::CancellationToken;
use arco_daemon::handover::Sockets;
use arco_mesh::dns::{Dns, FOREIGN_EACH, TTL_S};
use arco_model::id::ComponentId;
use arco_model::name::{ApplicationName, ComponentName, TenantName};
use arco_model::traffic::{DataPlaneSettings, GATEWAY_PREFIX, NAMES, NameEntry, SETTINGS};
use arco_store::kv::mirror::Mirror;
use arco_store::kv::{MemoryKv, SharedKv};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType, rdata};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(180);

async fn put<T: serde::Serialize>(kv: &SharedKv, key: &str, value: &T) {
    kv.put(key, serde_json::to_vec(value).unwrap(), None).await.unwrap();
}

async fn put_name(kv: &SharedKv, number: u8, component: &str, tenant: &str, may_call: Vec<ComponentId>) {
    let entry = NameEntry {
        tenant: TenantName::new(tenant).unwrap(),
        application: ApplicationName::new("shop").unwrap(),
        component: ComponentName::new(component).unwrap(),
        address: Ipv4Addr::new(10, 64, 1, number),
        instances: vec![Ipv4Addr::new(127, 0, 2, number)],
        may_call,
    };
    put(kv, &format!("{NAMES}{}", id(number)), &entry).await;
}

fn id(number: u8) -> ComponentId {
    ComponentId::from_parts(1, number.into())
}

fn settings(listen: SocketAddr, forwarder: Ipv4Addr) -> DataPlaneSettings {
    let SocketAddr::V4(listen) = listen else { panic!("IPv4 alone") };
    DataPlaneSettings {
        dns_listen: Some(listen),
        dns_forwarders: vec![forwarder.into()],
        domain: "localhost".to_owned(),
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    message
}

/// Asks from 127.0.2.N over UDP.
async fn ask(server: SocketAddr, asker: u8, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 2, asker), 0)).await.unwrap();
    let message = question(name, kind);
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0u8; 4096];
    let (length, from) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(from, server);
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    answer
}

async fn ask_tcp(server: SocketAddr, asker: u8, name: &str) -> Message {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 2, asker), 0).into()).unwrap();
    let mut stream = socket.connect(server).await.unwrap();
    let bytes = question(name, RecordType::A).to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0u8; length.into()];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn address(answer: &Message) -> Option<Ipv4Addr> {
    answer.answers.iter().find_map(|it| match it.data {
        RData::A(rdata::A(address)) => Some(address),
        _ => None,
    })
}

/// A name server for foreign names: `big.test` only over TCP.
async fn foreign(at: Ipv4Addr) -> u16 {
    let (udp, tcp, port) = loop {
        let udp = UdpSocket::bind((at, 0)).await.unwrap();
        let port = udp.local_addr().unwrap().port();
        // Another process may have it for TCP.
        if let Ok(tcp) = TcpListener::bind((at, port)).await {
            break (udp, tcp, port);
        }
    };
    fn reply(bytes: &[u8], over_tcp: bool) -> Vec<u8> {
        let asked = Message::from_vec(bytes).unwrap();
        let name = asked.queries[0].name().clone();
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.add_query(asked.queries[0].clone());
        let text = name.to_ascii();
        if text.starts_with("big.") && !over_tcp {
            answer.metadata.truncation = true;
        } else if text.starts_with("none.") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else {
            answer.add_answer(Record::from_rdata(name, 60, RData::A(rdata::A::new(192, 0, 2, 1))));
        }
        answer.to_vec().unwrap()
    }
    tokio::spawn(async move {
        let mut buffer = [0u8; 4096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let answer = reply(&buffer[..length], false);
            // A guess with another number first: it must not count.
            let mut forged = answer.clone();
            forged[0] ^= 1;
            udp.send_to(&forged, from).await.unwrap();
            udp.send_to(&answer, from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut asked = vec![0u8; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut asked).await.unwrap();
            let answer = reply(&asked, true);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    port
}

async fn listening(bound: &mut watch::Receiver<Option<SocketAddr>>, ip: Ipv4Addr) -> SocketAddr {
    let there = bound.wait_for(|it| it.is_some_and(|it| it.ip() == ip));
    tokio::time::timeout(PATIENCE, there).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn askers_learn_what_is_theirs_and_foreign_names_are_forwarded() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (first, second) = (Ipv4Addr::new(127, 0, 3, 1), Ipv4Addr::new(127, 0, 3, 2));
    let port = foreign(first).await;
    put_name(&kv, 1, "web", "blue", vec![]).await;
    put_name(&kv, 2, "db", "blue", vec![]).await;
    put_name(&kv, 3, "spy", "red", vec![]).await;
    put_name(&kv, 4, "friend", "green", vec![id(2)]).await;
    put(&kv, SETTINGS, &settings((first, 0).into(), first)).await;
    let mirror = Mirror::in_memory(GATEWAY_PREFIX);
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let dns = Dns::with_forwarding(Arc::clone(&mirror), Sockets::alone(), port, PATIENCE);
    let mut bound = dns.bound();
    let follow = CancellationToken::new();
    tokio::spawn(mirror.run(Arc::clone(&kv), follow.clone()));
    tokio::spawn(dns.run(stop));
    let server = listening(&mut bound, first).await;

    let db = Some(Ipv4Addr::new(10, 64, 1, 2));
    for (asker, name, code, expected) in [
        (1, "db.shop.blue.arco.internal.", ResponseCode::NoError, db),
        (1, "DB.Shop.Blue.Arco.Internal.", ResponseCode::NoError, db),
        (4, "db.shop.blue.arco.internal.", ResponseCode::NoError, db),
        (3, "db.shop.blue.arco.internal.", ResponseCode::NXDomain, None),
        (9, "db.shop.blue.arco.internal.", ResponseCode::NXDomain, None),
        (1, "nothing.shop.blue.arco.internal.", ResponseCode::NXDomain, None),
        (9, "example.test.", ResponseCode::NoError, Some(Ipv4Addr::new(192, 0, 2, 1))),
        (9, "big.test.", ResponseCode::NoError, Some(Ipv4Addr::new(192, 0, 2, 1))),
        (1, "none.test.", ResponseCode::NXDomain, None),
    ] {
        let answer = ask(server, asker, name, RecordType::A).await;
        assert_eq!((answer.metadata.response_code, address(&answer)), (code, expected), "{asker} asks for {name}");
    }
    let answer = ask(server, 1, "db.shop.blue.arco.internal.", RecordType::A).await;
    assert!(answer.metadata.authoritative && answer.answers[0].ttl == TTL_S);
    let empty = ask(server, 1, "db.shop.blue.arco.internal.", RecordType::AAAA).await;
    assert!(empty.metadata.response_code == ResponseCode::NoError && empty.answers.is_empty());
    assert_eq!(address(&ask_tcp(server, 1, "db.shop.blue.arco.internal.").await), db);

    put(&kv, SETTINGS, &settings((second, 0).into(), first)).await;
    let server = listening(&mut bound, second).await;
    assert_eq!(address(&ask(server, 1, "db.shop.blue.arco.internal.", RecordType::A).await), db);
    follow.cancel();
    drop(kv);
    assert_eq!(address(&ask(server, 1, "db.shop.blue.arco.internal.", RecordType::A).await), db, "without a store");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_questions_stay_open_does_not_take_the_turns_of_others() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let ip = Ipv4Addr::new(127, 0, 3, 4);
    let silent = UdpSocket::bind((ip, 0)).await.unwrap();
    put_name(&kv, 1, "web", "blue", vec![]).await;
    put_name(&kv, 2, "db", "blue", vec![]).await;
    put_name(&kv, 3, "spy", "red", vec![]).await;
    put(&kv, SETTINGS, &settings((ip, 0).into(), ip)).await;
    let mirror = Mirror::in_memory(GATEWAY_PREFIX);
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let port = silent.local_addr().unwrap().port();
    let dns = Dns::with_forwarding(Arc::clone(&mirror), Sockets::alone(), port, PATIENCE);
    let mut bound = dns.bound();
    tokio::spawn(mirror.run(Arc::clone(&kv), stop.clone()));
    tokio::spawn(dns.run(stop));
    let server = listening(&mut bound, ip).await;

    // One question reaches the silent server before the next is asked: nothing is lost on the way.
    let arrived = async |name: &str| {
        let mut buffer = [0u8; 4096];
        let (length, _) = tokio::time::timeout(PATIENCE, silent.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(Message::from_vec(&buffer[..length]).unwrap().queries[0].name().to_ascii(), name);
    };
    let blue = UdpSocket::bind((Ipv4Addr::new(127, 0, 2, 1), 0)).await.unwrap();
    for _ in 0..FOREIGN_EACH {
        blue.send_to(&question("slow.test.", RecordType::A).to_vec().unwrap(), server).await.unwrap();
        arrived("slow.test.").await;
    }
    let refused = ask(server, 2, "slow.test.", RecordType::A).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail, "another instance of the same tenant");
    let red = UdpSocket::bind((Ipv4Addr::new(127, 0, 2, 3), 0)).await.unwrap();
    red.send_to(&question("quick.test.", RecordType::A).to_vec().unwrap(), server).await.unwrap();
    arrived("quick.test.").await;
    let known = ask(server, 1, "db.shop.blue.arco.internal.", RecordType::A).await;
    assert_eq!(address(&known), Some(Ipv4Addr::new(10, 64, 1, 2)), "its own names go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_server_that_refuses_is_not_the_last_word() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let (ip, willing) = (Ipv4Addr::new(127, 0, 3, 5), Ipv4Addr::new(127, 0, 3, 6));
    let port = foreign(willing).await;
    let refusing = UdpSocket::bind((ip, port)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0u8; 4096];
        loop {
            let (length, from) = refusing.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
            answer.add_query(asked.queries[0].clone());
            answer.metadata.response_code = ResponseCode::Refused;
            refusing.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    for (forwarders, code, expected) in [
        (vec![ip.into(), willing.into()], ResponseCode::NoError, Some(Ipv4Addr::new(192, 0, 2, 1))),
        (vec![ip.into()], ResponseCode::Refused, None),
    ] {
        let settings = DataPlaneSettings { dns_forwarders: forwarders, ..settings((ip, 0).into(), ip) };
        put(&kv, SETTINGS, &settings).await;
        let mirror = Mirror::in_memory(GATEWAY_PREFIX);
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let dns = Dns::with_forwarding(Arc::clone(&mirror), Sockets::alone(), port, PATIENCE);
        let mut bound = dns.bound();
        tokio::spawn(mirror.run(Arc::clone(&kv), stop.clone()));
        tokio::spawn(dns.run(stop));
        let server = listening(&mut bound, ip).await;
        let answer = ask(server, 1, "example.test.", RecordType::A).await;
        assert_eq!((answer.metadata.response_code, address(&answer)), (code, expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_or_absent_is_waited_for() {
    let kv: SharedKv = Arc::new(MemoryKv::new());
    let ip = Ipv4Addr::new(127, 0, 3, 3);
    let holder = UdpSocket::bind((ip, 0)).await.unwrap();
    put(&kv, SETTINGS, &settings(holder.local_addr().unwrap(), ip)).await;
    let mirror = Mirror::in_memory(GATEWAY_PREFIX);
    let dns = Dns::build(Arc::clone(&mirror), Sockets::alone());
    let mut bound = dns.bound();
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let mut changed = mirror.changed();
    tokio::spawn(Arc::clone(&mirror).run(Arc::clone(&kv), stop.clone()));
    tokio::spawn(dns.run(stop));
    changed.changed().await.unwrap();
    assert!(bound.borrow().is_none());
    drop(holder);
    listening(&mut bound, ip).await;
    // An address of no interface: the bridge that will have it may come later.
    let absent = Ipv4Addr::new(10, 99, 98, 97);
    put(&kv, SETTINGS, &settings((absent, 0).into(), ip)).await;
    listening(&mut bound, absent).await;
}
