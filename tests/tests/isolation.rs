//! Two tenants with the same addresses, side by side: real guests, real packets.

use allod_tests::cloud::{Cloud, Options};
use allod_tests::tenant::{self, Tenant};

/// Of three echo requests, how many were answered?
fn answered(tenant: &Tenant<'_>, from: &str, arguments: &str) -> u32 {
    let said = tenant
        .ssh(from, &format!("ping -c 3 -W 2 {arguments} 2>&1; true"))
        .unwrap();
    let line = said
        .lines()
        .find(|l| l.contains("packets received"))
        .unwrap_or_else(|| panic!("{said}"));
    line.split(", ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn two_tenants_with_the_same_range_cannot_see_each_other() {
    let cloud = Cloud::start(Options::default()).unwrap();
    tenant::prepare(&cloud).unwrap();
    let (red, blue) = (
        Tenant::new(&cloud, "red").unwrap(),
        Tenant::new(&cloud, "blue").unwrap(),
    );
    for tenant in [&red, &blue] {
        tenant.network("10.0.0.0/24").unwrap();
        tenant.ssh_group().unwrap();
    }
    let on = |tenant: &Tenant<'_>, server: &str, address: &str| {
        let network = tenant.field(&["network", "show", &tenant.name], "id").unwrap();
        let nic = format!("net-id={network},v4-fixed-ip={address}");
        tenant
            .server(server, &["default", &tenant.name], &["--nic", &nic])
            .unwrap();
    };
    // Both have 10.0.0.10; only red has 10.0.0.11.
    on(&red, "red-one", "10.0.0.10");
    on(&blue, "blue-one", "10.0.0.10");
    on(&red, "red-two", "10.0.0.11");
    let red_one = red.floating_ip("red-one").unwrap();
    let blue_one = blue.floating_ip("blue-one").unwrap();
    let red_two = red.floating_ip("red-two").unwrap();
    red.wait_for_ssh("red-one", &red_one).unwrap();
    blue.wait_for_ssh("blue-one", &blue_one).unwrap();
    red.wait_for_ssh("red-two", &red_two).unwrap();

    // Each address leads to its tenant's own guest, and a stranger's key opens nothing.
    assert_eq!(red.ssh(&red_one, "hostname").unwrap().trim(), "red-one");
    assert_eq!(blue.ssh(&blue_one, "hostname").unwrap().trim(), "blue-one");
    blue.ssh(&red_one, "true").unwrap_err();

    // Red reaches its own second guest; blue, with the same addresses, finds nobody there, not even by ARP.
    assert_eq!(answered(&red, &red_one, "10.0.0.11"), 3);
    assert_eq!(answered(&blue, &blue_one, "10.0.0.11"), 0);
    let arp = |tenant: &Tenant<'_>, from: &str| {
        tenant
            .ssh(from, "sudo arping -c 2 -w 3 -I eth0 10.0.0.11; true")
            .unwrap()
    };
    assert!(!arp(&red, &red_one).contains("Received 0 response"));
    assert!(arp(&blue, &blue_one).contains("Received 0 response"));

    // Blue is not seen by metadata as red, though its address is red's.
    let name = "wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json";
    assert!(blue.ssh(&blue_one, name).unwrap().contains("blue-one"));
    assert!(red.ssh(&red_one, name).unwrap().contains("red-one"));

    // A tenant's servers and networks are not listed to the other.
    let seen = cloud.json("blue", &["server", "list"]).unwrap().to_string();
    assert!(seen.contains("blue-one") && !seen.contains("red-"), "{seen}");
    let seen = cloud.json("blue", &["network", "list"]).unwrap().to_string();
    assert!(seen.contains("blue") && !seen.contains("red"), "{seen}");
    let red_id = red.field(&["server", "show", "red-one"], "id").unwrap();
    cloud.refused("blue", &["server", "show", &red_id]).unwrap();
    cloud.refused("blue", &["server", "delete", &red_id]).unwrap();

    // A guest cannot speak under an address that is not its own.
    red.ssh(&red_one, "sudo ip addr add 10.0.0.99/24 dev eth0")
        .unwrap();
    assert_eq!(answered(&red, &red_one, "-I 10.0.0.99 10.0.0.11"), 0);
    assert_eq!(answered(&red, &red_one, "-I 10.0.0.10 10.0.0.11"), 3);

    cloud.end().unwrap();
}
