//! Real packets: network namespaces as guests, with the tools that guests have.
//! Takes root, /dev/net/tun, iproute2, ping, curl, dhclient (isc-dhcp-client) and iperf3.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::world::{Guest, World};
use common::{OUTSIDE, id, ip, mac, two_tenants};
use model::net::TapTarget;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for what passes to arrive, short enough to wait for what must not.
const NEVER: Duration = Duration::from_millis(700);

fn host() -> Guest {
    Guest::addressed(mac(0xee), "203.0.113.1/24", None)
}

/// Listens inside and tells of every caller whom it saw.
fn serve(guest: &Guest, port: u16) -> std::thread::JoinHandle<String> {
    let (ready, wait) = std::sync::mpsc::channel();
    let thread = guest.spawn(move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        ready.send(()).unwrap();
        let (mut stream, peer) = listener.accept().unwrap();
        let mut hello = [0; 5];
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&hello).unwrap();
        peer.ip().to_string()
    });
    wait.recv().unwrap();
    thread
}

/// Calls from inside; `true`: it was answered.
fn call(guest: &Guest, to: &str, patience: Duration) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    guest.run(move || {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, patience) else {
            return false;
        };
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut hello = [0; 5];
        stream.write_all(b"hello").is_ok() && stream.read_exact(&mut hello).is_ok() && &hello == b"hello"
    })
}

fn plug_all(world: &mut World, guests: &[(u8, &Guest)], host: &Guest) {
    for (number, guest) in guests {
        world.plug(TapTarget::Port(id((*number).into())), guest);
    }
    world.plug(TapTarget::Uplink("ext".into()), host);
}

#[test]
fn dhclient_gets_everything_and_curl_gets_metadata() {
    let mut world = World::start(&two_tenants());
    let guest = Guest::new(mac(1));
    world.plug(TapTarget::Port(id(1)), &guest);
    let folder = world.folder.path().to_str().unwrap().to_owned();
    let script = format!("{folder}/script");
    std::fs::write(
        &script,
        format!(
            "#!/bin/sh\nif [ \"$reason\" = BOUND ]; then set >{folder}/lease.env; \
             ip addr add $new_ip_address/24 dev $interface; ip link set $interface mtu $new_interface_mtu; \
             ip route add 169.254.169.254 via $new_dhcp_server_identifier; ip route add default via $new_routers; fi\nexit 0\n"
        ),
    )
    .unwrap();
    std::fs::write(
        format!("{folder}/dhclient.conf"),
        "option rfc3442 code 121 = array of unsigned integer 8;\n\
         request subnet-mask, routers, domain-name-servers, ntp-servers, host-name, domain-name, interface-mtu, rfc3442;\n",
    )
    .unwrap();
    common::world::sh(&format!("chmod 755 {script} {folder}"));
    let run = format!(
        "dhclient -1 -v -cf {folder}/dhclient.conf -sf {script} -lf {folder}/leases -pf {folder}/pid"
    );
    guest.sh(&format!("{run} eth0"));
    let lease = std::fs::read_to_string(format!("{folder}/lease.env")).unwrap();
    for told in [
        "new_ip_address='10.0.0.11'",
        "new_subnet_mask='255.255.255.0'",
        "new_routers='10.0.0.1'",
        "new_dhcp_server_identifier='10.0.0.1'",
        "new_domain_name_servers='9.9.9.9 1.1.1.1'",
        "new_ntp_servers='192.0.2.123'",
        "new_interface_mtu='1500'",
        "new_domain_name='example.test'",
        "new_host_name='guest-1'",
        "new_dhcp_lease_time='86400'",
        "new_rfc3442='32 169 254 169 254 10 0 0 1 0 10 0 0 1'",
    ] {
        assert!(lease.contains(told), "{told} is missing in {lease}");
    }
    let curl = "curl -sS --max-time 5 -H 'X-Forwarded-For: 10.0.0.12' -H 'X-Instance-ID: 2'";
    assert_eq!(
        guest.sh(&format!(
            "{curl} http://169.254.169.254/latest/meta-data/instance-id"
        )),
        "i-1"
    );
    assert_eq!(
        guest.sh(&format!("{curl} http://169.254.169.254/openstack/latest/")),
        "meta_data.json"
    );
    assert_eq!(
        guest
            .sh(&format!("{curl} http://169.254.169.254/latest/user-data | wc -c"))
            .trim(),
        "60000"
    );
    let status = "-o /dev/null -w '%{http_code}'";
    assert_eq!(
        guest.sh(&format!("{curl} {status} http://169.254.169.254/no")),
        "404"
    );
    assert_eq!(
        guest.sh(&format!(
            "{curl} {status} -X PUT http://169.254.169.254/latest/user-data"
        )),
        "405"
    );
    // Thirty connections in a row are more than there are sockets.
    guest.sh(&format!(
        "for i in $(seq 30); do {curl} http://169.254.169.254/latest/meta-data/ >/dev/null || exit 1; done"
    ));
    guest.sh(&format!("{run} -r eth0"));
}

#[test]
fn metadata_answers_a_guest_without_a_router_on_its_link() {
    let mut tables = two_tenants();
    tables.routers.clear();
    let mut world = World::start(&tables);
    let guest = Guest::addressed(mac(2), "169.254.7.7/16", None);
    world.plug(TapTarget::Port(id(2)), &guest);
    let curl = "curl -sS --max-time 5 http://169.254.169.254/latest/meta-data/instance-id";
    assert_eq!(guest.sh(curl), "i-2");
}

#[test]
fn guests_reach_each_other_and_the_world_as_their_rules_say() {
    let mut world = World::start(&two_tenants());
    let one = Guest::addressed(mac(1), "10.0.0.11/24", Some("10.0.0.1"));
    let two = Guest::addressed(mac(2), "10.0.0.12/24", Some("10.0.0.1"));
    let host = host();
    plug_all(&mut world, &[(1, &one), (2, &two)], &host);

    // Among themselves: all.
    two.sh("ping -c 2 -i 0.2 -W 5 10.0.0.11");
    let server = serve(&one, 4000);
    assert!(call(&two, "10.0.0.11:4000", SOON));
    assert_eq!(server.join().unwrap(), "10.0.0.12");

    // Out by SNAT and by a floating IP.
    two.sh("ping -c 2 -i 0.2 -W 5 203.0.113.1");
    two.sh("ping -c 1 -W 5 -s 4000 203.0.113.1");
    one.sh("ping -c 1 -W 5 -s 4000 203.0.113.1");
    for (guest, seen) in [(&two, "203.0.113.10"), (&one, "203.0.113.21")] {
        let server = serve(&host, 5000);
        assert!(call(guest, "203.0.113.1:5000", SOON));
        assert_eq!(server.join().unwrap(), seen);
    }

    // In by the floating IP: what the rules say, and no more.
    host.sh("ping -c 2 -i 0.2 -W 5 203.0.113.21");
    let server = serve(&one, 8000);
    assert!(call(&host, "203.0.113.21:8000", SOON));
    assert_eq!(server.join().unwrap(), "203.0.113.1");
    let other = one
        .spawn(|| TcpListener::bind("0.0.0.0:8001").unwrap())
        .join()
        .unwrap();
    assert!(!call(&host, "203.0.113.21:8001", NEVER));
    drop(other);

    // By the floating IP from inside the same network, and back.
    let server = serve(&one, 8000);
    assert!(call(&two, "203.0.113.21:8000", SOON));
    assert_eq!(server.join().unwrap(), "203.0.113.10");

    // Routers answer, and count hops.
    two.sh("ping -c 1 -W 5 10.0.0.1");
    host.sh("ping -c 1 -W 5 203.0.113.10");
    let expired = two.try_sh("ping -c 1 -W 5 -t 1 203.0.113.1");
    let said = String::from_utf8_lossy(&expired.stdout).into_owned();
    assert!(
        said.contains("From 10.0.0.1") && said.contains("Time to live exceeded"),
        "{said}"
    );

    // A refused port is heard of through NAT: the ICMP error finds its way back.
    let refused = two.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.connect("203.0.113.1:9").unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    });
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    let drops = world.status().drops;
    assert!(drops["security_group_ingress"] >= 1, "{drops:?}");
}

#[test]
fn two_tenants_with_the_same_addresses_do_not_meet() {
    let mut world = World::start(&two_tenants());
    let ours = Guest::addressed(mac(1), "10.0.0.11/24", Some("10.0.0.1"));
    let second = Guest::addressed(mac(2), "10.0.0.12/24", Some("10.0.0.1"));
    let theirs = Guest::addressed(mac(3), "10.0.0.11/24", Some("10.0.0.1"));
    let fourth = Guest::addressed(mac(4), "10.0.0.14/24", Some("10.0.0.1"));
    let host = host();
    plug_all(
        &mut world,
        &[(1, &ours), (2, &second), (3, &theirs), (4, &fourth)],
        &host,
    );
    // The same address, two machines.
    let servers = [serve(&ours, 8000), serve(&theirs, 8000)];
    assert!(call(&second, "10.0.0.11:8000", SOON));
    assert!(call(&fourth, "10.0.0.11:8000", SOON));
    assert_eq!(
        servers.map(|server| server.join().unwrap()),
        ["10.0.0.12", "10.0.0.14"]
    );
    // The other tenant's address is nobody's here.
    assert!(!second.try_sh("ping -c 1 -W 1 10.0.0.14").status.success());
    // Each appears outside as itself, and they meet there by floating IPs alone.
    for (guest, seen) in [(&second, "203.0.113.10"), (&fourth, "203.0.113.11")] {
        let server = serve(&host, 5000);
        assert!(call(guest, "203.0.113.1:5000", SOON));
        assert_eq!(server.join().unwrap(), seen);
    }
    let server = serve(&theirs, 8000);
    assert!(call(&ours, "203.0.113.23:8000", SOON));
    assert_eq!(server.join().unwrap(), "203.0.113.21");
}

#[test]
fn a_spoofing_guest_is_not_heard() {
    let mut world = World::start(&two_tenants());
    let liar = Guest::addressed(mac(1), "10.0.0.99/24", Some("10.0.0.1"));
    let other = Guest::addressed(mac(2), "10.0.0.12/24", None);
    let host = host();
    plug_all(&mut world, &[(1, &liar), (2, &other)], &host);
    other.sh("ip neigh replace 10.0.0.99 lladdr fa:16:3e:00:00:01 dev eth0 nud permanent");
    liar.sh("ip neigh replace 10.0.0.12 lladdr fa:16:3e:00:00:02 dev eth0 nud permanent");
    assert!(!liar.try_sh("ping -c 1 -W 1 10.0.0.12").status.success());
    liar.sh(
        "ip link set eth0 down && ip link set eth0 address fa:16:3e:00:00:77 && ip addr flush dev eth0 \
             && ip link set eth0 up && ip addr add 10.0.0.11/24 dev eth0",
    );
    assert!(!liar.try_sh("ping -c 1 -W 1 10.0.0.12").status.success());
    let status = world.status();
    assert!(
        status.drops["spoofed_ip"] >= 1 && status.drops["spoofed_mac"] >= 1,
        "{:?}",
        status.drops
    );
}

#[test]
fn tcp_streams_pass_with_offloads_and_through_nat() {
    let mut world = World::start(&two_tenants());
    let one = Guest::addressed(mac(1), "10.0.0.11/24", Some("10.0.0.1"));
    let two = Guest::addressed(mac(2), "10.0.0.12/24", Some("10.0.0.1"));
    let host = host();
    plug_all(&mut world, &[(1, &one), (2, &two)], &host);
    for (server, address) in [(&one, "10.0.0.11"), (&host, "203.0.113.1")] {
        for direction in ["", "-R"] {
            let mut listening = std::process::Command::new("ip")
                .args([
                    "netns",
                    "exec",
                    &server.name,
                    "iperf3",
                    "-s",
                    "-1",
                    "--forceflush",
                ])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = [0; 40];
            listening.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
            let report = two.sh(&format!("iperf3 -c {address} -n 50M {direction} -J"));
            assert!(listening.wait().unwrap().success());
            let retransmits = report.split("\"retransmits\":").last().unwrap_or_default();
            assert!(report.contains("\"sum_received\""), "{report}");
            assert!(!retransmits.is_empty());
        }
    }
}

#[test]
fn a_new_daemon_finds_the_switch_and_connections_go_on() {
    let tables = two_tenants();
    let mut world = World::start(&tables);
    let one = Guest::addressed(mac(1), "10.0.0.11/24", Some("10.0.0.1"));
    let two = Guest::addressed(mac(2), "10.0.0.12/24", Some("10.0.0.1"));
    let host = host();
    plug_all(&mut world, &[(1, &one), (2, &two)], &host);
    let listener = one.run(|| TcpListener::bind("0.0.0.0:8000").unwrap());
    let mut caller =
        two.run(|| TcpStream::connect_timeout(&"10.0.0.11:8000".parse().unwrap(), SOON).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    let mut passes = move || {
        accepted.set_read_timeout(Some(NEVER)).unwrap();
        let mut byte = [0];
        caller.write_all(b"x").unwrap();
        accepted.read_exact(&mut byte).is_ok()
    };
    assert!(passes());
    world.reconnect();
    let status = world.status();
    assert_eq!(
        (status.generation, status.uplinks.as_slice()),
        (1, ["ext".to_owned()].as_slice())
    );
    assert!(status.connections >= 2);
    // An unrelated change leaves the connection alone.
    let mut next = tables.clone();
    next.generation = 2;
    next.networks.get_mut(&id(OUTSIDE)).unwrap().mtu = 1400;
    next.ports.get_mut(&id(2)).unwrap().hostname = Some("renamed".into());
    world.apply(&next);
    assert!(passes());
    // The removal of the rule that let it begin ends it.
    next.generation = 3;
    for group in next.security_groups.values_mut() {
        group
            .rules
            .retain(|rule| rule.direction == model::net::Direction::Egress);
    }
    world.apply(&next);
    assert!(!passes());
    let _ = ip("10.0.0.1");
}
