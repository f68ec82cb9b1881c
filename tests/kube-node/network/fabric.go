// Package network is what a node gives its pods: a network namespace each, the virtual addresses of Services (kube-proxy's part), and the
// cluster's names (CoreDNS's part). It works in the network namespace that the program was started in, "the node's".
package network

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PodsMax is how many pods with a network one node holds: the addresses of its /24, less the network's, the gateway's and the last.
const PodsMax = 253

// Fabric joins pods by a bridge. Each pod has a /32 and a /128 and sends everything to the gateway, the bridge's own address, so that the
// node's rules see all packets, those between two of its pods too.
type Fabric struct {
	name     string
	links    *netlink.Handle
	bridge   netlink.Link
	Pods     [2]netip.Prefix
	Gateways [2]netip.Addr

	lock  sync.Mutex
	taken map[byte]bool
	last  byte
}

// Sandbox is a pod's network namespace.
type Sandbox struct {
	Netns *os.File
	// Addresses of the pod, the IPv4 one first.
	Addresses [2]netip.Addr
	fabric    *Fabric
	link      string
}

// NewFabric makes a node's bridge; what an earlier run of a node of this name left is removed first.
func NewFabric(node string, pods [2]netip.Prefix, services []netip.Prefix) (*Fabric, error) {
	sum := fnv.New32a()
	sum.Write([]byte(node))
	links, err := netlink.NewHandle()
	if err != nil {
		return nil, fmt.Errorf("cannot talk to the kernel about links: %w", err)
	}
	fabric := &Fabric{name: fmt.Sprintf("kn%08x", sum.Sum32()), links: links, Pods: pods, taken: map[byte]bool{}, last: 1}
	fabric.Gateways = [2]netip.Addr{host(pods[0], 1), host(pods[1], 1)}
	fabric.Close()
	if err := fabric.raise(services); err != nil {
		fabric.Close()
		return nil, fmt.Errorf("cannot make the node's bridge (needs root; another node with these addresses may run in this network namespace): %w", err)
	}
	return fabric, nil
}

func (fabric *Fabric) raise(services []netip.Prefix) error {
	// Its own hardware address: one that followed its ports' would go stale in the pods' neighbour tables.
	attributes := netlink.NewLinkAttrs()
	attributes.Name = fabric.name
	attributes.HardwareAddr = net.HardwareAddr{0x02, 0x6b, 0x6e, 0, fabric.Gateways[0].As4()[1], fabric.Gateways[0].As4()[2]}
	bridge := &netlink.Bridge{LinkAttrs: attributes}
	if err := fabric.links.LinkAdd(bridge); err != nil {
		return err
	}
	fabric.bridge = bridge
	err := errors.Join(
		sysctl("net/ipv6/conf/"+fabric.name+"/accept_dad", "0"),
		fabric.links.LinkSetUp(bridge),
		sysctl("net/ipv4/ip_forward", "1"),
		sysctl("net/ipv6/conf/all/forwarding", "1"),
		// A pod that calls its neighbour is routed back by the way it came, on purpose.
		sysctl("net/ipv4/conf/all/send_redirects", "0"),
		sysctl("net/ipv4/conf/"+fabric.name+"/send_redirects", "0"),
	)
	for at, gateway := range fabric.Gateways {
		err = errors.Join(err, fabric.links.AddrAdd(bridge, address(gateway, fabric.Pods[at].Bits())))
	}
	// Without a route the node's own calls to a Service would fail before any rule rewrites them.
	for _, prefix := range services {
		err = errors.Join(err, fabric.links.RouteReplace(&netlink.Route{LinkIndex: bridge.Index, Dst: network(prefix), Scope: netlink.SCOPE_LINK}))
	}
	if loopback, failure := fabric.links.LinkByName("lo"); failure == nil {
		err = errors.Join(err, fabric.links.LinkSetUp(loopback))
	}
	return err
}

// Plug makes a network namespace and joins it to the bridge.
func (fabric *Fabric) Plug() (*Sandbox, error) {
	number, err := fabric.take()
	if err != nil {
		return nil, err
	}
	sandbox := &Sandbox{fabric: fabric, link: fmt.Sprintf("%s-%d", strings.Replace(fabric.name, "kn", "kv", 1), number)}
	for at, prefix := range fabric.Pods {
		sandbox.Addresses[at] = host(prefix, number)
	}
	if err := sandbox.join(); err != nil {
		sandbox.Unplug()
		return nil, fmt.Errorf("cannot join a pod to the network: %w", err)
	}
	return sandbox, nil
}

func (sandbox *Sandbox) join() error {
	fabric := sandbox.fabric
	inside, err := sandbox.open()
	if err != nil {
		return err
	}
	defer inside.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MasterIndex = sandbox.link, fabric.bridge.Attrs().Index
	pair := &netlink.Veth{LinkAttrs: attributes, PeerName: "eth0", PeerNamespace: netlink.NsFd(sandbox.Netns.Fd())}
	if err := fabric.links.LinkAdd(pair); err != nil {
		return err
	}
	// A pod that reaches itself by a Service: where the kernel rewrites bridged packets too (br_netfilter) they leave by the port they came from.
	if err := errors.Join(fabric.links.LinkSetHairpin(pair, true), fabric.links.LinkSetUp(pair)); err != nil {
		return err
	}
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return err
		}
		if err := inside.LinkSetUp(link); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		for at, own := range sandbox.Addresses {
			gateway := fabric.Gateways[at]
			whole := gateway.BitLen()
			err := errors.Join(
				inside.AddrAdd(link, address(own, whole)),
				inside.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: network(netip.PrefixFrom(gateway, whole)), Scope: netlink.SCOPE_LINK}),
				inside.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}),
			)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// open makes the namespace, on a thread that ends with it, and gives a handle on its links.
func (sandbox *Sandbox) open() (*netlink.Handle, error) {
	type opened struct {
		handle *netlink.Handle
		err    error
	}
	done := make(chan opened)
	go func() {
		// Never unlocked: the thread is in the wrong namespace for anybody else.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- opened{err: fmt.Errorf("no network namespace: %w", err)}
			return
		}
		var err error
		for path, value := range map[string]string{
			"net/ipv6/conf/default/accept_dad": "0", "net/ipv6/conf/all/accept_dad": "0", "net/ipv4/conf/all/accept_redirects": "0",
			// As containerd sets it: any user may bind any port in its pod.
			"net/ipv4/ip_unprivileged_port_start": "0",
		} {
			err = errors.Join(err, sysctl(path, value))
		}
		if err == nil {
			sandbox.Netns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		if err != nil {
			done <- opened{err: err}
			return
		}
		handle, err := netlink.NewHandle()
		done <- opened{handle, err}
	}()
	result := <-done
	return result.handle, result.err
}

// Unplug removes the pod's link and lets go of its namespace, which ends with the last process in it.
func (sandbox *Sandbox) Unplug() {
	fabric := sandbox.fabric
	if link, err := fabric.links.LinkByName(sandbox.link); err == nil {
		_ = fabric.links.LinkDel(link)
	}
	if sandbox.Netns != nil {
		sandbox.Netns.Close()
	}
	fabric.lock.Lock()
	defer fabric.lock.Unlock()
	bytes := sandbox.Addresses[0].As4()
	delete(fabric.taken, bytes[3])
}

// take finds a free address, never the one given back last: a caller's old connection must not find another pod.
func (fabric *Fabric) take() (byte, error) {
	fabric.lock.Lock()
	defer fabric.lock.Unlock()
	for range PodsMax {
		fabric.last++
		if fabric.last < 2 || fabric.last > 254 {
			fabric.last = 2
		}
		if !fabric.taken[fabric.last] {
			fabric.taken[fabric.last] = true
			return fabric.last, nil
		}
	}
	return 0, fmt.Errorf("the node holds %d pods and has no address left in %s", PodsMax, fabric.Pods[0])
}

// Close removes the bridge, the pods' links and the rules.
func (fabric *Fabric) Close() {
	links, _ := fabric.links.LinkList()
	for _, link := range links {
		name := link.Attrs().Name
		if name == fabric.name || strings.HasPrefix(name, strings.Replace(fabric.name, "kn", "kv", 1)+"-") {
			_ = fabric.links.LinkDel(link)
		}
	}
	_ = nft(fmt.Sprintf("table inet %s\ndelete table inet %s\n", fabric.name, fabric.name))
}

// host is the address of a prefix with a last byte.
func host(prefix netip.Prefix, last byte) netip.Addr {
	bytes := prefix.Masked().Addr().AsSlice()
	bytes[len(bytes)-1] = last
	address, _ := netip.AddrFromSlice(bytes)
	return address
}

func network(prefix netip.Prefix) *net.IPNet {
	address := prefix.Masked().Addr()
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), address.BitLen())}
}

func address(own netip.Addr, bits int) *netlink.Addr {
	it := &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: net.CIDRMask(bits, own.BitLen())}}
	if own.Is6() {
		it.Flags = unix.IFA_F_NODAD
	}
	return it
}

func sysctl(path, value string) error {
	if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("cannot set a sysctl: %w", err)
	}
	return nil
}
