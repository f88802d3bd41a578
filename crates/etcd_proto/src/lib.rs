//! The part of etcd's v3 interface that we speak, as generated code: messages, clients and servers.
//!
//! Source: `proto/etcd/`; made by `cargo xtask gen`. Not here: any behaviour.

#[allow(missing_docs, unreachable_pub, clippy::all)]
#[path = "generated/etcdserverpb.rs"]
pub mod etcdserverpb;
#[allow(missing_docs, unreachable_pub, clippy::all)]
#[path = "generated/mvccpb.rs"]
pub mod mvccpb;
