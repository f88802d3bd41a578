//! `cargo xtask gen`: from `proto/` to checked-in Rust, so that a build needs no protoc.

use anyhow::Context;
use std::path::Path;

const HEADER: &str = "//! Generated from `proto/etcd/` by `cargo xtask gen`; not to be edited.\n\n";

/// Writes the stubs of etcd's interface into `crates/etcd_proto/src/generated/`.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let (proto, out) = (root.join("proto/etcd"), root.join("crates/etcd_proto/src/generated"));
    let descriptors = protox::compile([proto.join("rpc.proto")], [&proto]).context("compile proto/etcd/rpc.proto")?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .out_dir(&out)
        .compile_fds(descriptors)
        .context("write the stubs")?;
    for package in ["etcdserverpb", "mvccpb"] {
        let file = out.join(format!("{package}.rs"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        std::fs::write(&file, format!("{HEADER}{text}")).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}
