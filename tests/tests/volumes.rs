//! Volumes and interfaces that come and go while a guest runs, as the guest sees them.

use std::time::Duration;

use allod_tests::cloud::{Cloud, Options};
use allod_tests::host::wait_for;
use allod_tests::tenant::{self, Tenant};

const GUEST: Duration = Duration::from_secs(60);

/// Waits until a command in a guest says this; an empty answer counts, too.
fn guest_says(tenant: &Tenant<'_>, address: &str, script: &str, wanted: &str) {
    let mut last = String::new();
    let done = wait_for(&format!("guest's `{script}` to say {wanted:?}"), GUEST, || {
        last = tenant
            .ssh(address, script)
            .map_or_else(|e| e.to_string(), |said| said.trim().to_owned());
        Ok((last == wanted).then_some(()))
    });
    assert!(done.is_ok(), "{done:?}: the guest says {last:?}");
}

#[test]
fn a_running_guest_gets_volumes_and_interfaces_and_lets_them_go() {
    let mut cloud = Cloud::start(Options::default()).unwrap();
    tenant::prepare(&cloud).unwrap();
    let (address, server, key) = {
        let tenant = Tenant::new(&cloud, "acme").unwrap();
        tenant.network("10.0.0.0/24").unwrap();
        tenant.ssh_group().unwrap();
        let server = tenant.server("web", &["acme"], &["--network", "acme"]).unwrap();
        let address = tenant.floating_ip("web").unwrap();
        tenant.wait_for_ssh("web", &address).unwrap();

        // The guest finds two disks, each where the API says that it is.
        let mut ids = Vec::new();
        for (name, device) in [("one", "vdb"), ("two", "vdc")] {
            let id = tenant
                .field(&["volume", "create", "--size", "1", name], "id")
                .unwrap();
            let said = tenant
                .field(&["server", "add", "volume", "web", name], "Device")
                .unwrap();
            assert_eq!(said, format!("/dev/{device}"));
            let sectors = format!("cat /sys/block/{device}/size");
            guest_says(&tenant, &address, &sectors, "2097152");
            let serial = format!("cat /sys/block/{device}/serial");
            guest_says(&tenant, &address, &serial, &id[..20]);
            ids.push(id);
        }
        let write = "echo kept | sudo dd of=/dev/vdb conv=fsync 2>/dev/null; sudo head -c 4 /dev/vdb";
        assert_eq!(tenant.ssh(&address, write).unwrap().trim(), "kept");

        // It grows under the guest's eyes.
        let grow = [
            "--os-volume-api-version",
            "3.42",
            "volume",
            "set",
            "--size",
            "2",
            "one",
        ];
        tenant.run(&grow).unwrap();
        guest_says(&tenant, &address, "cat /sys/block/vdb/size", "4194304");

        // The first goes, the second stays.
        tenant.run(&["server", "remove", "volume", "web", "one"]).unwrap();
        guest_says(&tenant, &address, "ls /sys/block | grep -v vda", "vdc");
        wait_for("volume to be available", GUEST, || {
            let status = tenant.field(&["volume", "show", "one"], "status")?;
            Ok((status == "available").then_some(()))
        })
        .unwrap();

        // Another interface.
        tenant.run(&["network", "create", "second"]).unwrap();
        let range = ["--network", "second", "--subnet-range", "10.0.1.0/24", "second"];
        tenant.run(&[&["subnet", "create"], &range[..]].concat()).unwrap();
        tenant
            .run(&["server", "add", "network", "web", "second"])
            .unwrap();
        guest_says(&tenant, &address, "ls /sys/class/net | grep eth", "eth0\neth1");
        (address, server, tenant.key.clone())
    };

    // What a daemon that was killed had plugged, its successor unplugs.
    cloud.kill_daemon().unwrap();
    cloud.serve().unwrap();
    cloud.wait_until_it_answers(GUEST).unwrap();
    let cloud = cloud;
    let openstack = |arguments: &[&str]| cloud.openstack("acme", arguments).unwrap();
    let network = cloud.field("acme", &["network", "show", "second"], "id").unwrap();
    openstack(&["server", "remove", "network", "web", &network]);
    openstack(&["server", "remove", "volume", "web", "two"]);
    let status = || cloud.field("acme", &["volume", "show", "two"], "status");
    wait_for("volume to be available", GUEST, || {
        Ok((status()? == "available").then_some(()))
    })
    .unwrap();

    // What was written is there for the next server.
    openstack(&["server", "add", "volume", "web", "one"]);
    let mut last = String::new();
    let read = "ls /sys/class/net | grep eth; ls /sys/block | grep -v vda; sudo head -c 4 /dev/vdb";
    let done = wait_for("guest to see the volume again", GUEST, || {
        last = cloud.ssh(&key, &address, read)?;
        Ok((last.trim() == "eth0\nvdb\nkept").then_some(()))
    });
    assert!(done.is_ok(), "{done:?}: {last}");

    // A server that is deleted leaves its volume.
    openstack(&["server", "delete", "--wait", &server]);
    let status = cloud.field("acme", &["volume", "show", "one"], "status").unwrap();
    assert_eq!(status, "available");
    openstack(&["volume", "delete", "one", "two"]);
    cloud.end().unwrap();
}
