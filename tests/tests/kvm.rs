//! The small guest on the embedded monitor, through the API with the unmodified `openstack` client. The guest's image names the kernel
//! that this host's KVM can run (`kernel_id`, `os_command_line`); without a usable KVM the test says that it was skipped.

use std::time::Duration;

use allod_tests::cloud::{ADMIN, Cloud, Options};
use allod_tests::host::wait_for;
use allod_tests::kvm;
use allod_tests::tenant::{self, BOOT, IMAGE, Tenant};

/// An image of what a guest boots, for all.
fn upload(cloud: &Cloud, name: &str, file: &std::path::Path) -> String {
    let file = file.to_str().unwrap();
    let raw = ["--disk-format", "raw", "--container-format", "bare"];
    let create = ["image", "create", "--public", "--file", file, name];
    cloud
        .field(ADMIN, &[&create[..], &raw[..]].concat(), "id")
        .unwrap()
}

fn is(tenant: &Tenant<'_>, status: &str) {
    wait_for(status, Duration::from_secs(90), || {
        Ok((tenant.field(&["server", "show", "web"], "status")? == status).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_guest_lives_on_the_embedded_monitor() {
    let Some(kernel) = kvm::linux() else { return };
    let mut cloud = Cloud::start(Options {
        compute: "engine = \"kvm\"\n".into(),
        ..Options::default()
    })
    .unwrap();
    tenant::prepare(&cloud).unwrap();
    let id = upload(&cloud, "kernel", &kernel.path);
    let mut properties = vec![format!("kernel_id={id}")];
    if let Some(initrd) = &kernel.initrd {
        properties.push(format!("ramdisk_id={}", upload(&cloud, "ramdisk", initrd)));
    }
    properties.push(format!("os_command_line={}", kernel.command_line));
    for property in &properties {
        cloud
            .openstack(ADMIN, &["image", "set", "--property", property, IMAGE])
            .unwrap();
    }
    let in_use = |cloud: &Cloud| cloud.refused(ADMIN, &["image", "delete", "kernel"]).unwrap();

    let (server, address, key) = {
        let tenant = Tenant::new(&cloud, "acme").unwrap();
        tenant.network("10.0.0.0/24").unwrap();
        tenant.ssh_group().unwrap();
        let server = tenant.server("web", &["acme"], &["--network", "acme"]).unwrap();
        let address = tenant.floating_ip("web").unwrap();
        tenant.wait_for_ssh("web", &address).unwrap();
        assert!(in_use(&cloud).contains("in use"));

        // It runs in `allod vmm` and nothing else: no QEMU, no owner of its disk beside it.
        let commands: Vec<String> = cloud.processes().into_iter().map(|p| p.command).collect();
        let of = |kind: &str| commands.iter().filter(|command| command.ends_with(kind)).count();
        assert_eq!((of(" vmm"), of(" guest"), of(" disk")), (1, 0, 0), "{commands:?}");

        // What the guest was told, and made of it.
        assert_eq!(tenant.ssh(&address, "hostname").unwrap().trim(), "web");
        let said = tenant
            .ssh(
                &address,
                "wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json; echo; \
                 cat /sys/block/vda/size /sys/block/vda/serial",
            )
            .unwrap();
        assert!(said.contains(&server), "{said}");
        assert!(said.contains("\n2097152\n"), "a disk of 1 GiB: {said}");
        let log = cloud.console_log("acme", "web").unwrap();
        for milestone in ["network up 10.0.0.", "metadata ok", "ssh ready"] {
            assert!(log.contains(milestone), "no {milestone:?} in\n{log}");
        }

        // Pause: silence; and on.
        tenant.run(&["server", "pause", "web"]).unwrap();
        is(&tenant, "PAUSED");
        tenant.run(&["server", "unpause", "web"]).unwrap();
        is(&tenant, "ACTIVE");
        (server, address, tenant.key.clone())
    };

    // The daemon dies: the guest runs on, and the next daemon has it.
    let boot_id = |cloud: &Cloud| {
        cloud
            .ssh(&key, &address, "cat /proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
    };
    let first = boot_id(&cloud).unwrap();
    cloud.kill_daemon().unwrap();
    assert_eq!(boot_id(&cloud).unwrap(), first, "while no daemon runs");
    cloud.serve().unwrap();
    assert_eq!(
        cloud.field("acme", &["server", "show", "web"], "id").unwrap(),
        server
    );
    assert_eq!(boot_id(&cloud).unwrap(), first);

    // Another boot of the same disk; a stop by the power button; a start.
    cloud.ssh(&key, &address, "echo kept >kept && sync").unwrap();
    cloud
        .openstack("acme", &["server", "reboot", "--hard", "--wait", "web"])
        .unwrap();
    let second = wait_for("another boot", BOOT, || {
        Ok(boot_id(&cloud).ok().filter(|id| *id != first))
    })
    .unwrap();
    cloud.openstack("acme", &["server", "stop", "web"]).unwrap();
    wait_for("SHUTOFF", Duration::from_secs(90), || {
        let status = cloud.field("acme", &["server", "show", "web"], "status")?;
        Ok((status == "SHUTOFF").then_some(()))
    })
    .unwrap();
    let vmm = |cloud: &Cloud| cloud.processes().iter().any(|p| p.command.ends_with(" vmm"));
    assert!(!vmm(&cloud), "its machine still runs");
    cloud.openstack("acme", &["server", "start", "web"]).unwrap();
    cloud.wait_for_ssh(&key, &address, BOOT).unwrap();
    assert_ne!(boot_id(&cloud).unwrap(), second);
    assert_eq!(cloud.ssh(&key, &address, "cat kept").unwrap().trim(), "kept");

    // It switches off by itself.
    let _ = cloud.ssh(&key, &address, "sudo poweroff");
    wait_for("SHUTOFF by the guest itself", Duration::from_secs(60), || {
        let status = cloud.field("acme", &["server", "show", "web"], "status")?;
        Ok((status == "SHUTOFF").then_some(()))
    })
    .unwrap();
    cloud
        .openstack("acme", &["server", "delete", "--wait", "web"])
        .unwrap();
    cloud.openstack(ADMIN, &["image", "delete", "kernel"]).unwrap();
    cloud.end().unwrap();
}
