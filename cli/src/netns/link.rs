//! Links, addresses and routes of the calling thread's namespace, over rtnetlink. Blocking: the kernel answers within the call.

use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use netlink_bindings::traits::Pusher;
use netlink_bindings::{rt_addr, rt_link, rt_route, utils};
use netlink_socket2::{NetlinkSocket, ReplyError};
use nix::net::if_::if_nametoindex;

use super::Namespace;

/// IFF_UP.
const UP: u32 = 1;
/// The bridge's: one that is nobody's else ("locally administered"; IEEE 802, section 8.2).
const BRIDGE_MAC: [u8; 6] = [0x02, 0x6d, 0x77, 0, 0, 1];
/// IFLA_INFO_DATA inside IFLA_LINKINFO.
const INFO_DATA: u16 = 2;
/// VETH_INFO_PEER inside a veth's data.
const VETH_PEER: u16 = 1;
/// IFLA_IFNAME.
const IF_NAME: u16 = 3;
/// IFLA_NET_NS_FD.
const NET_NS_FD: u16 = 28;
/// IFA_F_NODAD: the address works at once, nobody else can have it.
const NO_DAD: u32 = 2;
/// RT_TABLE_MAIN.
const MAIN_TABLE: u8 = 254;
/// RTPROT_STATIC.
const STATIC: u8 = 4;
/// RTN_UNICAST.
const UNICAST: u8 = 1;

/// A socket to the kernel's routing subsystem.
pub(crate) struct Netlink {
    socket: NetlinkSocket,
}

impl Netlink {
    /// A socket for the calling thread's namespace, opened at its first use.
    pub(crate) fn new() -> Self {
        Self { socket: NetlinkSocket::new() }
    }

    /// Switches an interface on.
    pub(crate) fn up(&mut self, name: &str) -> anyhow::Result<()> {
        let header = rt_link::Ifinfomsg { ifi_index: index(name)?.cast_signed(), ifi_flags: UP, ifi_change: UP, ..Default::default() };
        let request = rt_link::Request::new().op_newlink_do(&header);
        self.acknowledge(&request).with_context(|| format!("cannot switch interface {name} on"))
    }

    /// Makes a bridge with an address of its own. Without one it has the lowest of its ports', and changes it when they come and go: neighbours
    /// would send to an address that is nobody's any more until they ask again.
    pub(crate) fn bridge(&mut self, name: &str) -> anyhow::Result<()> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&rt_link::Ifinfomsg::default());
        let encoded = request.encode().push_ifname(&c_name(name)?).push_address(&BRIDGE_MAC);
        let _ = encoded.nested_linkinfo().push_kind(c"bridge").end_nested();
        self.acknowledge(&request).with_context(|| format!("cannot make the bridge {name}"))
    }

    /// Makes a pair of interfaces: `name` here, enslaved to `bridge`, and `peer_name` in the other namespace.
    pub(crate) fn veth(&mut self, name: &str, bridge: &str, peer_name: &str, peer: &Namespace) -> anyhow::Result<()> {
        let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&rt_link::Ifinfomsg::default());
        let mut info = request.encode().push_ifname(&c_name(name)?).push_master(index(bridge)?).nested_linkinfo().push_kind(c"veth");
        let data = info.as_vec_mut();
        let info_data = utils::push_nested_header(data, INFO_DATA);
        let veth_peer = utils::push_nested_header(data, VETH_PEER);
        data.extend_from_slice(rt_link::Ifinfomsg::default().as_slice());
        attribute(data, IF_NAME, c_name(peer_name)?.as_bytes_with_nul());
        attribute(data, NET_NS_FD, &peer.file.as_raw_fd().to_ne_bytes());
        utils::finalize_nested_header(data, veth_peer);
        utils::finalize_nested_header(data, info_data);
        let _ = info.end_nested();
        self.acknowledge(&request).with_context(|| format!("cannot make the interface pair {name}"))
    }

    /// Removes an interface; one that is not there is no error, for its namespace may be gone already.
    pub(crate) fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let Ok(index) = index(name) else { return Ok(()) };
        let request = rt_link::Request::new().op_dellink_do(&rt_link::Ifinfomsg { ifi_index: index.cast_signed(), ..Default::default() });
        self.acknowledge(&request).with_context(|| format!("cannot remove the interface {name}"))
    }

    /// Gives an interface an address; it is usable at once (no duplicate address detection).
    pub(crate) fn address(&mut self, name: &str, address: IpNet) -> anyhow::Result<()> {
        let header = rt_addr::Ifaddrmsg {
            ifa_family: family(address.addr()),
            ifa_prefixlen: address.prefix_len(),
            ifa_flags: 0,
            ifa_scope: 0,
            ifa_index: index(name)?,
        };
        let mut request = rt_addr::Request::new().set_create().set_replace().op_newaddr_do(&header);
        let mut attributes = request.encode().push_local(address.addr());
        if address.addr().is_ipv6() {
            attributes = attributes.push_flags(NO_DAD);
        }
        drop(attributes);
        self.acknowledge(&request).with_context(|| format!("cannot give interface {name} the address {address}"))
    }

    /// Routes a range by way of a gateway.
    pub(crate) fn route(&mut self, range: IpNet, gateway: IpAddr) -> anyhow::Result<()> {
        let header = rt_route::Rtmsg {
            rtm_family: family(range.addr()),
            rtm_dst_len: range.prefix_len(),
            rtm_table: MAIN_TABLE,
            rtm_protocol: STATIC,
            rtm_type: UNICAST,
            ..Default::default()
        };
        let mut request = rt_route::Request::new().set_create().set_replace().op_newroute_do(&header);
        let mut attributes = request.encode();
        if range.prefix_len() > 0 {
            attributes = attributes.push_dst(range.network());
        }
        let _ = attributes.push_gateway(gateway);
        self.acknowledge(&request).with_context(|| format!("cannot route {range} by way of {gateway}"))
    }

    /// Ranges that this namespace has routes or addresses for: what a mesh must not take. Default routes are not among them.
    pub(crate) fn taken(&mut self) -> anyhow::Result<Vec<IpNet>> {
        let mut taken = Vec::new();
        let request = rt_route::Request::new().op_getroute_dump(&rt_route::Rtmsg::default());
        let mut reply = self.socket.request(&request).context("cannot read the routes of this machine")?;
        while let Some(message) = reply.recv() {
            let (header, attributes) = message.map_err(refused).context("cannot read the routes of this machine")?;
            let (Ok(destination), UNICAST) = (attributes.get_dst(), header.rtm_type) else { continue };
            if let Ok(range) = IpNet::new(destination, header.rtm_dst_len)
                && range.prefix_len() > 0
            {
                taken.push(range.trunc());
            }
        }
        Ok(taken)
    }

    fn acknowledge<R: netlink_bindings::traits::NetlinkRequest>(&mut self, request: &R) -> anyhow::Result<()> {
        self.socket.request(request)?.recv_ack().map_err(refused)
    }
}

/// The kernel's words without the reply buffer they came in.
fn refused(error: ReplyError) -> anyhow::Error {
    anyhow!("{error}")
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    proxy::intercept::expr::bytes(out, kind, value);
}

fn index(name: &str) -> anyhow::Result<u32> {
    if_nametoindex(name).with_context(|| format!("there is no interface {name}"))
}

fn c_name(name: &str) -> anyhow::Result<CString> {
    CString::new(name).with_context(|| format!("{name:?} is no interface name"))
}

fn family(address: IpAddr) -> u8 {
    let number = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(number).unwrap_or_default()
}
