//! What a tenant does with the unmodified `openstack` client, from the first token to the last deletion.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::host::wait_for;
use allod_tests::run::output;
use allod_tests::tenant::{self, BOOT, FLAVOR, IMAGE, Tenant};

/// A connection from the host to a guest: is it made?
fn connects(cloud: &Cloud, address: &str, port: u16) -> bool {
    let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    cloud
        .enter(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok()))
        .unwrap()
}

fn pings(cloud: &Cloud, address: &str) -> bool {
    output(cloud.command("ping").args(["-c", "1", "-W", "2", address]))
        .unwrap()
        .status
        .success()
}

fn names(list: &serde_json::Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item["Name"].as_str())
        .collect()
}

#[test]
fn from_the_first_token_to_the_last_deletion() {
    let cloud = Cloud::start(Options::default()).unwrap();

    // Identity.
    let token = cloud.json(ADMIN, &["token", "issue"]).unwrap();
    assert!(token["id"].as_str().unwrap().len() > 20, "{token}");
    let catalog = cloud.json(ADMIN, &["catalog", "list"]).unwrap().to_string();
    for service in ["identity", "compute", "network", "image"] {
        assert!(catalog.contains(service), "no {service} in {catalog}");
    }
    cloud.refused("nobody-of-this-name", &["token", "issue"]).unwrap();
    let tenant = Tenant::new(&cloud, "acme").unwrap();
    let whose = tenant.field(&["token", "issue"], "project_id").unwrap();
    assert_eq!(
        whose,
        cloud.field(ADMIN, &["project", "show", "acme"], "id").unwrap()
    );
    let refused = cloud.refused("acme", &["user", "list"]).unwrap();
    assert!(refused.contains("403"), "{refused}");
    cloud
        .add_credentials("intruder", "acme", "not the password", "acme")
        .unwrap();
    let refused = cloud.refused("intruder", &["token", "issue"]).unwrap();
    assert!(refused.contains("401"), "{refused}");

    // Images and flavors.
    tenant::prepare(&cloud).unwrap();
    assert_eq!(
        tenant.field(&["image", "show", IMAGE], "status").unwrap(),
        "active"
    );
    assert_eq!(tenant.field(&["flavor", "show", FLAVOR], "ram").unwrap(), "256");
    let flavors = cloud.json("acme", &["flavor", "list"]).unwrap();
    assert!(names(&flavors).contains(&"SCS-2V-4-20s"), "{flavors}");

    // Network and server.
    tenant.network("10.0.0.0/24").unwrap();
    tenant.ssh_group().unwrap();
    let script = tenant
        .file(
            "user-data",
            "#!/bin/sh\necho written by user data >/root/user-data\n",
        )
        .unwrap();
    let more = [
        "--network",
        "acme",
        "--user-data",
        &script,
        "--property",
        "colour=green",
        "--config-drive",
        "True",
    ];
    let server = tenant.server("web", &["acme"], &more).unwrap();
    assert_eq!(
        tenant.field(&["server", "show", "web"], "status").unwrap(),
        "ACTIVE"
    );
    let address = tenant.floating_ip("web").unwrap();
    tenant.wait_for_ssh("web", &address).unwrap();

    // What the guest was told, and made of it.
    assert_eq!(tenant.ssh(&address, "hostname").unwrap().trim(), "web");
    let metadata = tenant
        .ssh(
            &address,
            "wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json",
        )
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(metadata["uuid"], server.as_str());
    assert_eq!(metadata["meta"]["colour"], "green");
    let drive =
        "sudo mount -o ro /dev/vdb /mnt && cat /mnt/openstack/latest/meta_data.json && sudo umount /mnt";
    let drive: serde_json::Value = serde_json::from_str(&tenant.ssh(&address, drive).unwrap()).unwrap();
    assert_eq!(drive["uuid"], server.as_str());
    assert_eq!(
        tenant.ssh(&address, "sudo cat /root/user-data").unwrap().trim(),
        "written by user data"
    );
    let root: u64 = tenant
        .ssh(&address, "df -m / | awk 'NR == 2 { print $2 }'")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        (900..=1024).contains(&root),
        "the root filesystem has {root} MiB on a disk of 1 GiB"
    );
    let own = tenant.ssh(&address, "ip -4 -o addr show eth0").unwrap();
    assert!(own.contains("10.0.0."), "{own}");

    // Allowed traffic passes, forbidden traffic does not.
    tenant
        .ssh(&address, "echo hello >/tmp/index.html; httpd -p 8080 -h /tmp")
        .unwrap();
    tenant.ssh(&address, "ping -c 1 -W 5 172.24.4.1").unwrap();
    assert!(
        !connects(&cloud, &address, 8080),
        "TCP 8080 passes without a rule"
    );
    assert!(!pings(&cloud, &address), "ICMP passes without a rule");
    let rule = [
        "security",
        "group",
        "rule",
        "create",
        "--protocol",
        "tcp",
        "--dst-port",
        "8080",
        "acme",
    ];
    let rule = tenant.field(&rule, "id").unwrap();
    wait_for("TCP 8080 with its rule", Duration::from_secs(10), || {
        Ok(connects(&cloud, &address, 8080).then_some(()))
    })
    .unwrap();
    tenant
        .run(&[
            "security",
            "group",
            "rule",
            "create",
            "--protocol",
            "icmp",
            "acme",
        ])
        .unwrap();
    wait_for("ICMP with its rule", Duration::from_secs(10), || {
        Ok(pings(&cloud, &address).then_some(()))
    })
    .unwrap();
    tenant
        .run(&["security", "group", "rule", "delete", &rule])
        .unwrap();
    wait_for("the end of TCP 8080", Duration::from_secs(10), || {
        Ok((!connects(&cloud, &address, 8080)).then_some(()))
    })
    .unwrap();

    // Console log.
    let log = cloud.console_log("acme", "web").unwrap();
    for milestone in [
        "allod-guest: kernel 6.1",
        "network up 10.0.0.",
        "metadata ok",
        "ssh ready",
    ] {
        assert!(log.contains(milestone), "no {milestone:?} in\n{log}");
    }

    // Reboot: another boot of the same disk.
    let first = tenant.boot_id(&address).unwrap();
    tenant.ssh(&address, "echo kept >kept && sync").unwrap();
    tenant.run(&["server", "reboot", "--wait", "web"]).unwrap();
    let second = wait_for("another boot", BOOT, || {
        Ok(tenant.boot_id(&address).ok().filter(|id| *id != first))
    })
    .unwrap();
    assert_eq!(tenant.ssh(&address, "cat kept").unwrap().trim(), "kept");

    // Stop and start.
    tenant.run(&["server", "stop", "web"]).unwrap();
    wait_for("SHUTOFF", Duration::from_secs(90), || {
        Ok((tenant.field(&["server", "show", "web"], "status")? == "SHUTOFF").then_some(()))
    })
    .unwrap();
    assert!(
        !cloud
            .processes()
            .iter()
            .any(|p| p.command.contains("qemu-system")),
        "its machine still runs"
    );
    tenant.run(&["server", "start", "web"]).unwrap();
    tenant.wait_for_ssh("web", &address).unwrap();
    let third = tenant.boot_id(&address).unwrap();
    assert!(third != first && third != second);
    assert_eq!(tenant.ssh(&address, "cat kept").unwrap().trim(), "kept");
    assert_eq!(
        tenant.field(&["server", "show", "web"], "status").unwrap(),
        "ACTIVE"
    );

    // The guest's own power button.
    let _ = tenant.ssh(&address, "sudo poweroff");
    wait_for("SHUTOFF by the guest itself", Duration::from_secs(60), || {
        Ok((tenant.field(&["server", "show", "web"], "status")? == "SHUTOFF").then_some(()))
    })
    .unwrap();

    // Delete everything; nothing is left behind.
    tenant.run(&["server", "delete", "--wait", "web"]).unwrap();
    assert_eq!(names(&cloud.json("acme", &["server", "list"]).unwrap()), [""; 0]);
    tenant.run(&["floating", "ip", "delete", &address]).unwrap();
    tenant
        .run(&["router", "remove", "subnet", "acme", "acme"])
        .unwrap();
    tenant.run(&["router", "delete", "acme"]).unwrap();
    tenant.run(&["network", "delete", "acme"]).unwrap();
    tenant.run(&["security", "group", "delete", "acme"]).unwrap();
    tenant.run(&["keypair", "delete", "acme"]).unwrap();
    cloud.openstack(ADMIN, &["image", "delete", IMAGE]).unwrap();
    cloud.openstack(ADMIN, &["flavor", "delete", FLAVOR]).unwrap();
    cloud.openstack(ADMIN, &["user", "delete", "acme"]).unwrap();
    cloud.openstack(ADMIN, &["project", "delete", "acme"]).unwrap();
    cloud.end().unwrap();
}

#[test]
fn the_client_is_the_unmodified_one() {
    let mut command = Command::new(allod_tests::venv::openstack());
    let version = String::from_utf8(output(command.arg("--version")).unwrap().stdout).unwrap();
    assert_eq!(version.trim(), "openstack 10.5.0");
}
