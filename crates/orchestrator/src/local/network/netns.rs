//! Network namespaces as files: made and set up on a thread of their own, which ends with its namespace membership.
//!
//! What must hold: a namespace is complete (addresses, routes, settings) before its file is handed out.

use super::NetworkError;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// How long a connect inside a namespace may take: a full queue of a listener does not answer.
const DIAL: std::time::Duration = std::time::Duration::from_secs(5);

/// The link of an instance to the bridge.
pub(super) struct Uplink {
    /// Name of its outer end.
    pub(super) veth: String,
    /// Address of the instance.
    pub(super) address: Ipv4Addr,
    /// Address of the bridge.
    pub(super) gateway: Ipv4Addr,
    /// Largest packet in bytes.
    pub(super) mtu: u32,
}

/// Makes a namespace that the file `path` stands for.
pub(super) async fn create(path: PathBuf, uplink: Option<Uplink>) -> Result<(), NetworkError> {
    let (done, result) = tokio::sync::oneshot::channel();
    let work = move || {
        let _ = done.send(create_here(&path, uplink));
    };
    let thread = std::thread::Builder::new().name("netns".to_owned()).spawn(work);
    thread.map_err(|it| NetworkError::step("start a thread for a namespace", it))?;
    result.await.unwrap_or_else(|_| Err(NetworkError::step("make a network namespace", "its thread ended early")))
}

/// Changes the namespace of the calling thread, which must not be used for anything else afterwards.
fn create_here(path: &Path, uplink: Option<Uplink>) -> Result<(), NetworkError> {
    let failed = |it: std::io::Error| NetworkError::step("make a network namespace", it);
    let outside = File::open("/proc/thread-self/ns/net").map_err(failed)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|it| failed(it.into()))?;
    settings().map_err(|it| NetworkError::step("set up a network namespace", it))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    runtime.block_on(set_up(uplink, &outside))?;
    File::create(path).map_err(failed)?;
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, flags, None::<&str>)
        .map_err(|it| failed(it.into()))
}

fn settings() -> std::io::Result<()> {
    let set = |path: &str, value: &str| match std::fs::write(path, value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()), // a kernel without this setting
        done => done,
    };
    for scope in ["all", "default", "lo"] {
        set(&format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
        set(&format!("/proc/sys/net/ipv4/conf/{scope}/accept_redirects"), "0")?;
    }
    // The namespace belongs to the machine's user namespace, so that no capability inside an instance's own user
    // namespace counts here; these two let programs listen on port 80 and ping nevertheless.
    set("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    set("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

async fn set_up(uplink: Option<Uplink>, outside: &File) -> Result<(), NetworkError> {
    let failed = |it: rtnetlink::Error| NetworkError::step("set up a network namespace", it);
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|it| NetworkError::step("open netlink", it))?;
    let connection = std::pin::pin!(connection);
    let work = async {
        // Index 1 is the loopback device of every namespace.
        handle.link().change(LinkUnspec::new_with_index(1).up().build()).execute().await.map_err(failed)?;
        let Some(Uplink { veth, address, gateway, mtu }) = uplink else { return Ok(()) };
        let mut peer = LinkMessageBuilder::<LinkUnspec>::default().name(veth).mtu(mtu).build();
        peer.attributes.push(LinkAttribute::NetNsFd(outside.as_raw_fd()));
        let link = LinkVeth::new("eth0", "").set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).index(2).mtu(mtu).up();
        handle.link().add(link.build()).execute().await.map_err(failed)?;
        handle.address().add(2, IpAddr::V4(address), 32).execute().await.map_err(failed)?;
        let near = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(gateway, 32)
            .output_interface(2)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build();
        handle.route().add(near).execute().await.map_err(failed)?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(2).build();
        handle.route().add(default).execute().await.map_err(failed)
    };
    tokio::select! {
        () = connection => Err(NetworkError::step("set up a network namespace", "netlink ended")),
        done = work => done,
    }
}

/// Connects to a port at `127.0.0.1` inside a namespace. The connection stays in there; this process only holds it.
pub(super) async fn dial(path: PathBuf, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let (done, result) = tokio::sync::oneshot::channel();
    let work = move || {
        let dialled = File::open(&path).and_then(|namespace| {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let stream = std::net::TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), DIAL)?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        let _ = done.send(dialled);
    };
    // A thread of its own: it stays in that namespace until it ends.
    std::thread::Builder::new().name("netns".to_owned()).spawn(work)?;
    let ended = |_| Err(std::io::Error::other("the thread in its network namespace ended early"));
    tokio::net::TcpStream::from_std(result.await.unwrap_or_else(ended)?)
}

/// Lets go of a namespace; it ends with its last process. Fine when there is none.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
