//! Links, addresses and routes, over rtnetlink. Every function acts on the network namespace of the calling thread.

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

/// The switch's bridge, in the switch's namespace.
pub(crate) const BRIDGE: &str = "br0";
/// A pod's link, in the pod's namespace.
pub(crate) const POD_LINK: &str = "eth0";

/// The lab's own subnets; addresses outside are single hosts.
const PREFIX_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 77, 0, 0), 16);
const PREFIX_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0), 64);

/// The `n`-th address of the lab's subnets. The switch is number 1.
pub(crate) fn nth_v4(n: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(PREFIX_V4.0) + u32::from(n))
}

/// See [`nth_v4`].
pub(crate) fn nth_v6(n: u16) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(PREFIX_V6.0) + u128::from(n))
}

fn prefix_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(v4) if v4.octets()[..2] == PREFIX_V4.0.octets()[..2] => PREFIX_V4.1,
        IpAddr::V4(_) => 32,
        IpAddr::V6(v6) if v6.segments()[..4] == PREFIX_V6.0.segments()[..4] => PREFIX_V6.1,
        IpAddr::V6(_) => 128,
    }
}

/// Starts `lo`.
pub(crate) fn loopback_up() -> io::Result<()> {
    with_handle(|netlink| async move { set_up(&netlink, "lo").await })
}

/// Whether a bridge and a veth pair can be made.
pub(crate) fn probe() -> io::Result<()> {
    with_handle(|netlink| async move {
        netlink.link().add(LinkBridge::new(BRIDGE).build()).execute().await?;
        netlink.link().add(LinkVeth::new("probe0", "probe1").build()).execute().await
    })
}

/// Makes the bridge, with addresses of its own, so that the switch can stand for the node.
pub(crate) fn make_switch() -> io::Result<()> {
    with_handle(|netlink| async move {
        set_up(&netlink, "lo").await?;
        netlink.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await
    })?;
    add_address(BRIDGE, nth_v4(1).into())?;
    add_address(BRIDGE, nth_v6(1).into())?;
    add_default_route(BRIDGE, true)?;
    add_default_route(BRIDGE, false)
}

/// Makes the veth pair of a pod: `port` on the bridge here, [`POD_LINK`] in the namespace `pod`.
pub(crate) fn plug(port: &str, pod: RawFd) -> io::Result<()> {
    let bridge = if_nametoindex(BRIDGE)?;
    let peer = LinkUnspec::new_with_name(POD_LINK).setns_by_fd(pod).build();
    let link = LinkMessageBuilder::<LinkVeth>::new(port, POD_LINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge)
        .up()
        .build();
    with_handle(|netlink| async move { netlink.link().add(link).execute().await })
}

/// Attaches `port` to the bridge or takes it off. Unlike a link that is down this leaves routes and neighbours of the
/// pod as they are: its packets vanish, as in a partition of a real network.
pub(crate) fn attach(port: &str, attached: bool) -> io::Result<()> {
    let link = LinkUnspec::new_with_name(port);
    let link = if attached { link.controller(if_nametoindex(BRIDGE)?) } else { link.nocontroller() };
    with_handle(|netlink| async move { netlink.link().set(link.build()).execute().await })
}

/// Starts a pod's links and gives it its addresses and default routes.
pub(crate) fn make_pod(addresses: &[IpAddr]) -> io::Result<()> {
    with_handle(|netlink| async move {
        set_up(&netlink, "lo").await?;
        set_up(&netlink, POD_LINK).await
    })?;
    for address in addresses {
        add_address(POD_LINK, *address)?;
    }
    for v4 in [true, false] {
        if addresses.iter().any(|address| address.is_ipv4() == v4) {
            add_default_route(POD_LINK, v4)?;
        }
    }
    Ok(())
}

/// Adds an address, without duplicate address detection: nobody else has it, and waiting a second for it is no use.
pub(crate) fn add_address(link: &str, address: IpAddr) -> io::Result<()> {
    let index = if_nametoindex(link)?;
    with_handle(|netlink| async move {
        let mut request = netlink.address().add(index, address, prefix_length(address));
        let message = request.message_mut();
        if address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await
    })
}

/// Adds the on-link default route.
fn add_default_route(link: &str, v4: bool) -> io::Result<()> {
    let index = if_nametoindex(link)?;
    with_handle(|netlink| async move {
        let route = if v4 {
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
                .output_interface(index)
                .build()
        };
        netlink.route().add(route).execute().await
    })
}

async fn set_up(netlink: &Handle, link: &str) -> Result<(), rtnetlink::Error> {
    netlink.link().set(LinkUnspec::new_with_name(link).up().build()).execute().await
}

/// Runs `work` with a netlink socket of the calling thread's namespace; starts no thread.
fn with_handle<T, F>(work: impl FnOnce(Handle) -> F) -> io::Result<T>
where
    F: Future<Output = Result<T, rtnetlink::Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result.map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other.to_string()),
        })
    })
}
