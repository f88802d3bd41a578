//! Links and routes of the machine through rtnetlink: the bridge and the outer ends of the instances' links.

use super::NetworkError;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use tokio::task::JoinSet;

/// A netlink connection into the namespace of the process.
pub(super) struct Links {
    handle: Handle,
    /// The connection's task; it ends with this.
    _connection: JoinSet<()>,
}

impl Links {
    /// Opens it.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|it| NetworkError::step("open netlink", it))?;
        let mut task = JoinSet::new();
        task.spawn(connection);
        Ok(Self { handle, _connection: task })
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(found) => Ok(found),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(NetworkError::step("look for a link", error)),
        }
    }

    /// Makes or adopts the bridge with its address; returns its index.
    pub(super) async fn ensure_bridge(
        &self,
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let index = match self.find(name).await? {
            Some(found) => found.header.index,
            None => {
                // A fixed hardware address: the kernel's choice would change with the ports, and instances cache it.
                let hardware = [&[0x02, 0xac], address.octets().as_slice()].concat();
                let bridge = LinkBridge::new(name).address(hardware).mtu(mtu).build();
                self.handle
                    .link()
                    .add(bridge)
                    .execute()
                    .await
                    .map_err(|it| NetworkError::step("make the bridge", it))?;
                let found = self.find(name).await?;
                found.ok_or_else(|| NetworkError::step("make the bridge", "it is not there afterwards"))?.header.index
            }
        };
        match self.handle.address().add(index, IpAddr::V4(address), prefix).execute().await {
            Ok(()) => {}
            Err(error) if is(&error, libc::EEXIST) => {}
            Err(error) => return Err(NetworkError::step("give the bridge its address", error)),
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().change(up).execute().await.map_err(|it| NetworkError::step("bring up the bridge", it))
    }

    /// Brings up the outer end of an instance's link and routes its address there.
    pub(super) async fn connect(&self, veth: &str, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), NetworkError> {
        let failed = |it| NetworkError::step("connect an instance", it);
        device_settings(veth).map_err(|it| NetworkError::step("connect an instance", it))?;
        let found =
            self.find(veth).await?.ok_or_else(|| NetworkError::step("connect an instance", "its link is gone"))?;
        let index = found.header.index;
        self.handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(failed)?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .pref_source(gateway)
            .scope(RouteScope::Link)
            .build();
        self.handle.route().add(route).execute().await.map_err(failed)
    }

    /// Removes a link; fine when there is none.
    pub(super) async fn delete(&self, name: &str) -> Result<(), NetworkError> {
        let Some(found) = self.find(name).await? else { return Ok(()) };
        self.delete_index(found.header.index).await
    }

    async fn delete_index(&self, index: u32) -> Result<(), NetworkError> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(()),
            // It went with its other end in the meantime.
            Err(error) if is(&error, libc::ENODEV) => Ok(()),
            Err(error) => Err(NetworkError::step("remove a link", error)),
        }
    }

    /// Removes every link whose name begins with `prefix` and that is not in `keep`.
    pub(super) async fn delete_except(&self, prefix: &str, keep: &BTreeSet<String>) -> Result<(), NetworkError> {
        let mut links = self.handle.link().get().execute();
        let mut stale = Vec::new();
        while let Some(link) = links.try_next().await.map_err(|it| NetworkError::step("list the links", it))? {
            let ours = |it: &LinkAttribute| matches!(it, LinkAttribute::IfName(name) if name.starts_with(prefix) && !keep.contains(name));
            if link.attributes.iter().any(ours) {
                stale.push(link.header.index);
            }
        }
        for index in stale {
            self.delete_index(index).await?;
        }
        Ok(())
    }
}

fn is(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(it) if it.raw_code() == -code)
}

/// Kernel settings of the bridge or an instance's link: no IPv6, no redirects, a sender's address must belong to the
/// link it came by, no way to the loopback network.
pub(super) fn device_settings(device: &str) -> std::io::Result<()> {
    let set = |path: String, value: &str| std::fs::write(path, value);
    for (name, value) in
        [("send_redirects", "0"), ("accept_redirects", "0"), ("rp_filter", "1"), ("route_localnet", "0")]
    {
        set(format!("/proc/sys/net/ipv4/conf/{device}/{name}"), value)?;
    }
    match set(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()), // a kernel without IPv6
        done => done,
    }
}
