//! The small guest image boots as an ordinary disk, without a cloud: plain QEMU, its user-mode network in a namespace,
//! and a config drive.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use allod_tests::host::wait_for;
use allod_tests::netns::Netns;
use allod_tests::paths;
use allod_tests::run::{finish, run};
use allod_tests::ssh::{Key, USER};

const ID: &str = "11111111-2222-4333-8444-555555555555";

/// QEMU, killed when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn config_drive(folder: &Path, key: &Key) -> String {
    let public = fs::read_to_string(key.public()).unwrap();
    let metadata = serde_json::json!({
        "uuid": ID,
        "hostname": "drive.novalocal",
        "public_keys": { "a \"quoted\" name": public, "with \\ and \u{e9}": "" },
        "keys": [{ "name": "k", "type": "ssh", "data": public }],
        "meta": {},
        "devices": [],
        "launch_index": 0,
        "ok": [true, null, -1.5e3],
    });
    let tree = folder.join("openstack/latest");
    fs::create_dir_all(&tree).unwrap();
    fs::write(
        tree.join("meta_data.json"),
        serde_json::to_string_pretty(&metadata).unwrap(),
    )
    .unwrap();
    fs::write(
        tree.join("user_data"),
        "#!/bin/sh\necho user data speaks as $(id -un) on $(hostname)\n",
    )
    .unwrap();
    let image = folder.join("config.img").display().to_string();
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    run("mkfs.vfat", &["-n", "CONFIG-2", &image]).unwrap();
    run(
        "mcopy",
        &[
            "-s",
            "-i",
            &image,
            folder.join("openstack").to_str().unwrap(),
            "::",
        ],
    )
    .unwrap();
    image
}

fn boot(netns: &Netns, disk: &Path, drive: &str, serial: &Path, qmp: &Path) -> Machine {
    let mut command = netns.command("qemu-system-x86_64");
    command
        .args([
            "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1", "-m", "256",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args([
            "-drive",
            &format!("if=none,id=root,format=qcow2,file={}", disk.display()),
        ])
        .args(["-device", "virtio-blk-pci,drive=root,bootindex=0"])
        .args([
            "-drive",
            &format!("if=none,id=config,format=raw,readonly=on,file={drive}"),
        ])
        .args(["-device", "virtio-blk-pci,drive=config"])
        .args([
            "-netdev",
            "user,id=net,hostfwd=tcp:127.0.0.1:2222-:22",
            "-device",
            "virtio-net-pci,netdev=net",
        ])
        .args([
            "-device",
            "virtio-rng-pci",
            "-serial",
            &format!("file:{}", serial.display()),
        ])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
        .stdin(Stdio::null());
    Machine(command.spawn().unwrap())
}

fn wait_on_console(serial: &Path, what: &str) -> String {
    wait_for(what, Duration::from_secs(60), || {
        let log = String::from_utf8_lossy(&fs::read(serial).unwrap_or_default()).into_owned();
        Ok(log.contains(what).then_some(log))
    })
    .unwrap_or_else(|e| panic!("{e}\n{}", fs::read_to_string(serial).unwrap_or_default()))
}

#[test]
fn it_boots_grows_and_obeys_the_power_button() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = |name: &str| folder.path().join(name);
    let image = paths::guest_image();
    fs::copy(&image, at("disk.qcow2"))
        .unwrap_or_else(|e| panic!("{}: {e}; cargo xtask guest-image", image.display()));
    grow(&at("disk.qcow2"), 3 << 30);
    let key = Key::generate(folder.path(), "key").unwrap();
    let drive = config_drive(folder.path(), &key);
    let netns = Netns::new().unwrap();
    let ssh = |script: &str| {
        let mut command = netns.command("ssh");
        command
            .args(key.options())
            .args(["-p", "2222", &format!("{USER}@127.0.0.1"), script]);
        finish(&mut command)
    };

    let began = Instant::now();
    let mut machine = boot(&netns, &at("disk.qcow2"), &drive, &at("serial"), &at("qmp"));
    let log = wait_on_console(&at("serial"), "allod-guest: ssh ready");
    println!("ssh ready after {:.1} s", began.elapsed().as_secs_f64());
    for milestone in [
        "allod-guest: kernel 6.1",
        "network up 10.0.2.15/24",
        "metadata ok (drive)",
    ] {
        assert!(log.contains(milestone), "no {milestone:?} in\n{log}");
    }
    wait_on_console(&at("serial"), "user data speaks as root on drive");
    wait_on_console(&at("serial"), "root filesystem grown to 3.0G");

    let first = ssh("cat /proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(
        ssh("hostname; id -un; sudo id -un").unwrap(),
        format!("drive\n{USER}\nroot\n")
    );
    let host_key = ssh("sudo sha256sum /etc/dropbear/dropbear_ed25519_host_key").unwrap();
    ssh("echo kept >kept; sync").unwrap();

    // The power button ends it cleanly: the filesystem needs no recovery at the next boot.
    press_power_button(&at("qmp"));
    let status = wait_for("power off", Duration::from_secs(30), || {
        Ok(machine.0.try_wait()?)
    })
    .unwrap();
    assert!(status.success(), "{status}");
    fs::remove_file(at("serial")).unwrap();

    let _machine = boot(&netns, &at("disk.qcow2"), &drive, &at("serial"), &at("qmp"));
    let log = wait_on_console(&at("serial"), "allod-guest: host key");
    // User data runs once per server, and keys stay.
    assert!(!log.contains("user data"), "{log}");
    assert_ne!(ssh("cat /proc/sys/kernel/random/boot_id").unwrap(), first);
    assert_eq!(
        ssh("cat kept; sudo dmesg | grep -c 'recovery complete'; true").unwrap(),
        "kept\n0\n"
    );
    assert_eq!(
        ssh("sudo sha256sum /etc/dropbear/dropbear_ed25519_host_key").unwrap(),
        host_key
    );
}

/// The virtual size of a qcow2 image stands in bytes 24 to 31 of its header; the one table of a small image covers
/// 512 MiB, so growing beyond that needs a larger one, which lies free at the end of its cluster.
fn grow(disk: &Path, size: u64) {
    let mut image = fs::read(disk).unwrap();
    let tables = size.div_ceil(512 << 20);
    image[24..32].copy_from_slice(&size.to_be_bytes());
    image[36..40].copy_from_slice(&u32::try_from(tables).unwrap().to_be_bytes());
    fs::write(disk, image).unwrap();
}

fn press_power_button(qmp: &Path) {
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::os::unix::net::UnixStream::connect(qmp).unwrap();
    let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
    lines.next().unwrap().unwrap();
    for command in ["qmp_capabilities", "system_powerdown"] {
        writeln!(socket, "{{\"execute\": \"{command}\"}}").unwrap();
        let answer = lines
            .find(|l| {
                l.as_ref()
                    .is_ok_and(|l| l.contains("return") || l.contains("error"))
            })
            .unwrap();
        assert!(answer.as_ref().unwrap().contains("return"), "{answer:?}");
    }
}
