use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cloud::driver::{DiskKeys, DriverError, Drivers, VolumeSource, Web, WebFile};
use disk::pool::PoolOptions;
use model::disk::{DiskKey, DiskLimits, DiskRequest, DiskStatus, ImageFormat, Rate};
use model::machine::{ConfigDriveFile, Machine, MachineDisk, MachineNic, PowerState, StopMode};
use model::net::{Attachment, Network, Port, Subnet, SwitchStatus, Tables, Uplink};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use process::child::{Isolation, Record, Runtime};
use process::jail::Enforcement;
use uuid::Uuid;
use vmm::{Accelerator, EngineKind};

use crate::drivers::{Node, Options};

const PATIENCE: Duration = Duration::from_secs(60);
const PORT: Uuid = Uuid::from_u128(0x10);
const SERVER: Uuid = Uuid::from_u128(0x20);
const VOLUME: Uuid = Uuid::from_u128(0x30);
const TAP: &str = "allod-ext";

/// A lineage, whose key is made of 251 and 252.
const LINEAGE: Uuid = Uuid::from_u128(0x40);

struct Keys;

#[async_trait::async_trait]
impl DiskKeys for Keys {
    async fn disk_key(&self, lineage: Uuid, _: &str) -> Result<DiskKey, DriverError> {
        assert_eq!(lineage, LINEAGE);
        Ok(DiskKey {
            lineage,
            data: [251; 32],
            tweak: [252; 32],
        })
    }
}

/// These tests fetch nothing.
struct NoWeb;

#[async_trait::async_trait]
impl Web for NoWeb {
    fn check(&self, _: &str) -> Result<(), DriverError> {
        Err(DriverError::BadInput("there is no web".into()))
    }

    async fn get(&self, _: &str) -> Result<WebFile, DriverError> {
        Err(DriverError::BadInput("there is no web".into()))
    }
}

/// In a network namespace of its own, with a pool that is unmounted at the end, whatever happens.
fn in_a_world(run: impl FnOnce(&World)) {
    let folder = tempfile::tempdir().unwrap();
    // Of the whole process, which has one thread yet.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    std::fs::write(FORWARDING, "0").unwrap();
    let cleaner = Cleaner(folder.path().to_owned());
    run(&World {
        folder: folder.path().to_owned(),
    });
    drop(cleaner);
}

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

struct World {
    folder: std::path::PathBuf,
}

/// Ends children and mounts that a failed test left.
struct Cleaner(std::path::PathBuf);

impl Drop for Cleaner {
    fn drop(&mut self) {
        let runtime = Runtime::open(&self.0.join("run/children")).unwrap();
        for record in runtime.list().unwrap().values() {
            if let Ok(Some(process)) = runtime.find(record) {
                eprintln!("left over: {}", record.name);
                let _ = process.kill().and_then(|()| process.wait(Some(PATIENCE)));
            }
        }
        let _ = nix::mount::umount(&self.0.join("pool"));
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.0.join("log"))
                .into_iter()
                .flatten()
                .flatten()
            {
                eprintln!(
                    "{}:\n{}",
                    entry.path().display(),
                    std::fs::read_to_string(entry.path()).unwrap_or_default()
                );
            }
        }
    }
}

impl World {
    /// One daemon's life. It ends without a word to its children.
    fn daemon<F: Future<Output = ()>>(&self, run: impl FnOnce(Node, Drivers) -> F) {
        self.daemon_with(Isolation::Process, run);
    }

    fn daemon_with<F: Future<Output = ()>>(
        &self,
        isolation: Isolation,
        run: impl FnOnce(Node, Drivers) -> F,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let node = self.node(isolation).await;
            let drivers = node.drivers(Arc::new(NoWeb));
            run(node, drivers).await;
        });
    }

    /// A child's number, once it is another than this.
    async fn successor(&self, name: &str, old: i32) -> i32 {
        until(|| async { self.children().get(name).map(|r| r.pid).filter(|&pid| pid != old) }).await
    }

    async fn node(&self, isolation: Isolation) -> Node {
        Node::open(
            Options {
                state: self.folder.clone(),
                backups: self.folder.join("backups"),
                pool: PoolOptions {
                    path: self.folder.join("pool"),
                    file_size: Some(400 << 20),
                    preallocate: false,
                },
                max_image_bytes: 64 << 20,
                isolation,
                engine: Some(EngineKind::Qemu),
                accelerator: Some(Accelerator::Tcg),
                qemu: "/usr/bin/qemu-system-x86_64".into(),
                machines: vmm::kvm::engine::Options::default(),
                first_uid: 710_000 + std::process::id() % 1000 * 20,
                enforcement: Enforcement::Kill,
                masquerade: true,
            },
            Arc::new(Keys),
        )
        .await
        .unwrap()
    }

    fn children(&self) -> BTreeMap<String, Record> {
        Runtime::open(&self.folder.join("run/children"))
            .unwrap()
            .list()
            .unwrap()
    }

    fn pid(&self, name: &str) -> i32 {
        self.children()
            .get(name)
            .unwrap_or_else(|| panic!("{name} runs: {:?}", self.children().keys()))
            .pid
    }

    fn kill(&self, name: &str) -> i32 {
        let pid = self.pid(name);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        pid
    }

    /// Nothing is left: no child, TAP, rule or mount.
    /// No key is written down anywhere.
    fn assert_discreet(&self) {
        let mut folders = vec![self.folder.clone()];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let kind = entry.file_type().unwrap();
                if kind.is_dir() && entry.file_name() != "pool" {
                    folders.push(entry.path());
                } else if kind.is_file() && entry.file_name() != "pool.xfs" {
                    let bytes = std::fs::read(entry.path()).unwrap();
                    let shows = bytes
                        .windows(16)
                        .any(|part| part == b"251,251,251,251," || part == [251; 16]);
                    assert!(!shows, "{}", entry.path().display());
                    files += 1;
                }
            }
        }
        assert!(files > 3, "{files}");
    }

    fn assert_clean(&self) {
        assert!(self.children().is_empty(), "{:?}", self.children().keys());
        assert!(!interfaces().contains(TAP));
        assert!(!output("nft", &["list", "ruleset"]).contains("allod"));
        assert_eq!(std::fs::read_to_string(FORWARDING).unwrap().trim(), "0");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.folder.to_str().unwrap()), "{mounts}");
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn interfaces() -> String {
    std::fs::read_to_string("/proc/net/dev").unwrap()
}

/// Wait until something is so.
async fn until<T, F: Future<Output = Option<T>>>(mut probe: impl FnMut() -> F) -> T {
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("it happens in time")
}

/// One tenant's port, and an external network.
fn tables() -> Arc<Tables> {
    let subnet = |cidr: &str, gateway: &str| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        dhcp: false,
        dhcp_server: None,
        dns: Vec::new(),
        ntp: Vec::new(),
        host_routes: Vec::new(),
        dns_domain: None,
    };
    let network = |vni, id, subnet| Network {
        vni,
        mtu: 1500,
        subnets: BTreeMap::from([(Uuid::from_u128(id), subnet)]),
    };
    let (inside, outside) = (Uuid::from_u128(1), Uuid::from_u128(2));
    Arc::new(Tables {
        generation: 7,
        networks: BTreeMap::from([
            (inside, network(1, 3, subnet("10.0.0.0/24", "10.0.0.1"))),
            (outside, network(2, 4, subnet("172.24.4.0/24", "172.24.4.1"))),
        ]),
        ports: BTreeMap::from([(
            PORT,
            Port {
                network: inside,
                mac: "fa:16:3e:00:00:01".parse().unwrap(),
                fixed_ips: Vec::new(),
                allowed_address_pairs: Vec::new(),
                port_security: false,
                security_groups: Vec::new(),
                admin_up: true,
                hostname: None,
                attachment: Attachment::VhostUser,
                metadata: None,
            },
        )]),
        uplinks: vec![Uplink {
            network: outside,
            name: TAP.into(),
        }],
        ..Tables::default()
    })
}

async fn status(drivers: &Drivers) -> SwitchStatus {
    drivers.switch.status().await.unwrap()
}

pub fn a_switch_that_dies_is_replaced_and_told_all_again() {
    in_a_world(|world| {
        world.daemon(|node, drivers| async move {
            drivers.switch.apply(tables()).await.unwrap();
            let before = status(&drivers).await;
            assert_eq!((before.generation, before.uplinks), (7, vec![TAP.to_owned()]));
            assert!(output("ip", &["address", "show", "dev", TAP]).contains("inet 172.24.4.1/24"));
            assert!(output("nft", &["list", "ruleset"]).contains("masquerade"));
            assert_eq!(std::fs::read_to_string(FORWARDING).unwrap().trim(), "1");

            let old = world.kill("switch");
            // By itself, before anyone asks it for something.
            let new = world.successor("switch", old).await;
            until(|| async { (status(&drivers).await.uplinks == [TAP]).then_some(()) }).await;
            assert_eq!(status(&drivers).await.generation, 7);
            assert_eq!(world.pid("switch"), new);
            assert!(
                output("ip", &["address", "show", "dev", TAP]).contains("inet 172.24.4.1/24"),
                "the TAP stayed"
            );

            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
        });
    });
}

pub fn the_next_daemon_adopts_the_switch() {
    in_a_world(|world| {
        world.daemon(|_node, drivers| async move { drivers.switch.apply(tables()).await.unwrap() });
        let pid = world.pid("switch");
        world.daemon(|node, drivers| async move {
            assert_eq!(status(&drivers).await.uplinks, [TAP]);
            drivers.switch.apply(tables()).await.unwrap();
            assert_eq!(world.pid("switch"), pid, "the same process");
            // This daemon never had the TAP: it goes with the switch, and is made again.
            let old = world.kill("switch");
            world.successor("switch", old).await;
            until(|| async { (status(&drivers).await.uplinks == [TAP]).then_some(()) }).await;
            until(|| async {
                output("ip", &["address", "show", "dev", TAP])
                    .contains("172.24.4.1/24")
                    .then_some(())
            })
            .await;

            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
        });
    });
}

/// Assembler for a boot sector that prints a letter, then whatever `rest` does. Sector 2 of the disk can be read by BIOS call.
fn boot_sector(rest: &[u8]) -> Vec<u8> {
    let mut sector = vec![
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
        0xfb, // segments 0, stack, sti
        0x88, 0x16, 0x00, 0x7b, // mov [0x7b00], dl: the boot drive
    ];
    sector.extend(rest);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

/// For ever: read sector 2 to 0x8000 by the BIOS, and print its first byte.
const READ_AND_PRINT: &[u8] = &[
    0xb8, 0x01, 0x02, // again: mov ax, 0x0201
    0xb9, 0x02, 0x00, // mov cx, 2
    0x30, 0xf6, // xor dh, dh
    0x8a, 0x16, 0x00, 0x7b, // mov dl, [0x7b00]
    0xbb, 0x00, 0x80, // mov bx, 0x8000
    0xcd, 0x13, // int 0x13
    0xa0, 0x00, 0x80, // mov al, [0x8000]
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xf4, // hlt: until the next tick of the clock
    0xeb, 0xe5, // jmp again
];
/// Power off by ACPI.
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];

/// For ever: let go of every device that QEMU wants back, by its ACPI hot-plug registers (QEMU's docs/specs/acpi_pci_hotplug).
const EJECT: &[u8] = &[
    0x66, 0x31, 0xdb, // xor ebx, ebx
    0xba, 0xd0, 0x0c, // next: mov dx, 0xcd0: the bus
    0x66, 0x89, 0xd8, // mov eax, ebx
    0x66, 0xef, // out dx, eax
    0xba, 0xc4, 0x0c, // mov dx, 0xcc4: slots that shall go
    0x66, 0xed, // in eax, dx
    0x66, 0x85, 0xc0, // test eax, eax
    0x74, 0x05, // jz none
    0xba, 0xc8, 0x0c, // mov dx, 0xcc8: slots that may go
    0x66, 0xef, // out dx, eax
    0x43, // none: inc bx
    0x83, 0xe3, 0x3f, // and bx, 63
    0xeb, 0xe3, // jmp next
];

fn machine() -> Machine {
    Machine {
        id: SERVER,
        name: "test".into(),
        vcpus: 1,
        memory_mib: 64,
        boot: model::machine::Boot::Bios,
        disks: vec![MachineDisk {
            volume: VOLUME,
            size: 1 << 20,
            read_only: false,
            limits: DiskLimits::default(),
        }],
        nics: vec![MachineNic {
            port: PORT,
            mac: "fa:16:3e:00:00:01".parse().unwrap(),
            mtu: 1500,
        }],
        config_drive: vec![ConfigDriveFile {
            path: "openstack/latest/meta_data.json".into(),
            content: b"{}".to_vec(),
        }],
    }
}

async fn make_volume(world: &World, drivers: &Drivers, sector: &[u8]) {
    drivers
        .disks
        .create_volume(VOLUME, 1 << 20, VolumeSource::Empty, Some(LINEAGE))
        .await
        .unwrap();
    let mut bytes = sector.to_vec();
    bytes.resize(1 << 20, 0);
    bytes[512] = b'#';
    let key = Keys.disk_key(LINEAGE, "").await.unwrap();
    disk::crypt::Cipher::new(&key).seal(0, &mut bytes);
    // Not anew: the file is the pool's.
    let path = world.folder.join(format!("pool/volumes/{VOLUME}.raw"));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    file.sync_all().unwrap();
}

/// The guest's `#`, of which each is one read of its disk.
async fn prints_more(drivers: &Drivers) {
    let count = || async {
        let log = drivers.machines.console_log(SERVER, 1 << 20).await.unwrap();
        log.iter().filter(|&&b| b == b'#').count()
    };
    let before = count().await;
    until(|| async { (count().await > before + 2).then_some(()) }).await;
}

pub fn a_guest_lives_through_the_death_of_all_others() {
    in_a_world(|world| {
        let (guest, disk) = (&format!("guest-{SERVER}"), &format!("disk-{VOLUME}"));
        world.daemon(|_node, drivers| async move {
            make_volume(world, &drivers, &boot_sector(READ_AND_PRINT)).await;
            drivers.switch.apply(tables()).await.unwrap();
            drivers.machines.start(&machine()).await.unwrap();
            drivers.machines.start(&machine()).await.unwrap();
            assert_eq!(
                drivers.machines.list().await.unwrap(),
                [(SERVER, PowerState::Running)]
            );
            world.assert_discreet();
            prints_more(&drivers).await;
            until(|| async {
                (status(&drivers).await.vhost_user == BTreeMap::from([(PORT, true)])).then_some(())
            })
            .await;

            // Its disk's owner, its config drive's, and the switch.
            for victim in [disk, &format!("config-drive-{SERVER}"), "switch"] {
                let old = world.kill(victim);
                world.successor(victim, old).await;
                prints_more(&drivers).await;
            }
            until(|| async {
                (status(&drivers).await.vhost_user == BTreeMap::from([(PORT, true)])).then_some(())
            })
            .await;
        });
        let (guest_before, disk_before) = (world.pid(guest), world.pid(disk));
        world.daemon(|node, drivers| async move {
            assert_eq!(
                drivers.machines.list().await.unwrap(),
                [(SERVER, PowerState::Running)]
            );
            prints_more(&drivers).await;
            assert_eq!(
                (world.pid(guest), world.pid(disk)),
                (guest_before, disk_before),
                "the same processes"
            );
            assert_eq!(status(&drivers).await.vhost_user, BTreeMap::from([(PORT, true)]));

            // The next daemon keeps the disk alive as well.
            let old = world.kill(disk);
            world.successor(disk, old).await;
            prints_more(&drivers).await;

            drivers
                .machines
                .stop(SERVER, StopMode::Graceful(Duration::from_millis(100)))
                .await
                .unwrap();
            assert_eq!(world.children().keys().collect::<Vec<_>>(), ["switch"]);
            assert!(status(&drivers).await.vhost_user.is_empty());
            assert!(
                !drivers
                    .machines
                    .console_log(SERVER, 100)
                    .await
                    .unwrap()
                    .is_empty()
            );
            drivers.machines.forget(SERVER).await.unwrap();
            assert!(
                drivers
                    .machines
                    .console_log(SERVER, 100)
                    .await
                    .unwrap()
                    .is_empty()
            );
            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
        });
    });
}

pub fn devices_come_and_go_while_a_guest_runs() {
    const MORE: Uuid = Uuid::from_u128(0x31_0000_0000_0000_0000_0000_0000);
    in_a_world(|world| {
        let bare = Machine {
            nics: vec![],
            config_drive: vec![],
            ..machine()
        };
        let disk = MachineDisk {
            volume: MORE,
            size: 1 << 20,
            read_only: false,
            limits: DiskLimits {
                total_iops: Some(Rate::steady(1000)),
                ..DiskLimits::default()
            },
        };
        let nic = &machine().nics[0];
        let owner = format!("disk-{MORE}");
        let has_owner = || world.children().contains_key(&owner);
        // What QEMU is connected to.
        let owned = || -> DiskStatus {
            let control = world
                .folder
                .join(format!("machines/{SERVER}/disk-000000310000.control"));
            let mut client: process::control::Client<DiskRequest, DiskStatus> =
                process::control::Client::connect(&control, PATIENCE).unwrap();
            client.call(&DiskRequest::Status, &[]).unwrap()
        };
        let connected = || owned().connected;
        let limits = |iops| DiskLimits {
            total_iops: Some(Rate::steady(iops)),
            ..DiskLimits::default()
        };
        world.daemon(|_node, drivers| {
            let (bare, disk, owner) = (&bare, &disk, &owner);
            let (owned, connected, has_owner) = (&owned, &connected, &has_owner);
            async move {
                make_volume(world, &drivers, &boot_sector(EJECT)).await;
                let disks = &drivers.disks;
                disks
                    .create_volume(MORE, 1 << 20, VolumeSource::Volume(VOLUME), None)
                    .await
                    .unwrap();
                drivers.switch.apply(tables()).await.unwrap();
                // Of a machine that does not run nothing changes.
                drivers.machines.attach_disk(SERVER, disk).await.unwrap();
                drivers.machines.detach_disk(SERVER, MORE).await.unwrap();
                assert!(!has_owner());
                drivers.machines.start(bare).await.unwrap();

                for _ in 0..2 {
                    drivers.machines.attach_disk(SERVER, disk).await.unwrap();
                    drivers.machines.attach_port(SERVER, nic).await.unwrap();
                }
                assert!(has_owner());
                until(|| async { connected().then_some(()) }).await;
                until(|| async {
                    (status(&drivers).await.vhost_user == BTreeMap::from([(PORT, true)])).then_some(())
                })
                .await;

                disks.grow_volume(MORE, 4 << 20).await.unwrap();
                drivers.machines.resize_disk(MORE, 4 << 20).await.unwrap();
                until(|| async { connected().then_some(()) }).await;

                assert_eq!(owned().limits, limits(1000));
                let machines = &drivers.machines;
                machines.limit_disk(SERVER, MORE, &limits(2000)).await.unwrap();
                assert_eq!(owned().limits, limits(2000));
                // Its successor has them, too.
                let old = world.kill(owner);
                world.successor(owner, old).await;
                assert_eq!(owned().limits, limits(2000));
                // Nobody has this one.
                machines.limit_disk(SERVER, SERVER, &limits(1)).await.unwrap();
                machines.limit_disk(MORE, MORE, &limits(1)).await.unwrap();
            }
        });
        world.daemon(|node, drivers| {
            let (disk, owner) = (&disk, &owner);
            async move {
                assert_eq!(status(&drivers).await.vhost_user, BTreeMap::from([(PORT, true)]));
                let told = drivers.machines.disk_limits(SERVER).await.unwrap();
                let of = |volume| told.iter().find(|(id, _)| *id == volume).unwrap().1;
                assert_eq!((of(VOLUME), of(MORE)), (DiskLimits::default(), limits(2000)));
                assert_eq!(owned().limits, limits(2000));
                // The next daemon keeps it alive, too, at its new size and with its limits.
                let old = world.kill(owner);
                world.successor(owner, old).await;
                assert_eq!(owned().limits, limits(2000));
                drivers.disks.grow_volume(MORE, 8 << 20).await.unwrap();
                drivers.machines.resize_disk(MORE, 8 << 20).await.unwrap();
                until(|| async { connected().then_some(()) }).await;
                for _ in 0..2 {
                    drivers.machines.detach_disk(SERVER, MORE).await.unwrap();
                    assert!(!has_owner());
                    drivers.machines.detach_port(SERVER, PORT).await.unwrap();
                    assert!(status(&drivers).await.vhost_user.is_empty());
                }
                // Slots are used again, and what was there from the start can go as well.
                let large = MachineDisk {
                    size: 8 << 20,
                    ..disk.clone()
                };
                drivers.machines.attach_disk(SERVER, &large).await.unwrap();
                until(|| async { connected().then_some(()) }).await;
                drivers.machines.detach_disk(SERVER, VOLUME).await.unwrap();
                assert!(!world.children().contains_key(&format!("disk-{VOLUME}")));
                drivers.machines.stop(SERVER, StopMode::Hard).await.unwrap();
                assert_eq!(world.children().keys().collect::<Vec<_>>(), ["switch"]);
                node.tear_down(StopMode::Hard).await.unwrap();
                world.assert_clean();
            }
        });
    });
}

pub fn a_guest_that_powers_off_is_cleared() {
    in_a_world(|world| {
        world.daemon(|node, drivers| async move {
            make_volume(world, &drivers, &boot_sector(POWER_OFF)).await;
            drivers.switch.apply(tables()).await.unwrap();
            let mut events = drivers.machines.events();
            drivers.machines.start(&machine()).await.unwrap();
            let event = tokio::time::timeout(PATIENCE, events.recv())
                .await
                .unwrap()
                .unwrap();
            assert_eq!((event.id, event.state), (SERVER, PowerState::Shutdown));
            assert_eq!(world.children().keys().collect::<Vec<_>>(), ["switch"]);
            assert!(status(&drivers).await.vhost_user.is_empty());
            // It starts again, and is torn down with the node.
            make_volume(world, &drivers, &boot_sector(READ_AND_PRINT)).await;
            drivers.machines.start(&machine()).await.unwrap();
            prints_more(&drivers).await;
            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
        });
    });
}

pub fn a_machine_that_cannot_be_adopted_keeps_no_daemon_from_its_start() {
    in_a_world(|world| {
        let disk = format!("disk-{VOLUME}");
        let file = world.folder.join(format!("pool/volumes/{VOLUME}.raw"));
        let aside = file.with_extension("aside");
        world.daemon(|_node, drivers| async move {
            make_volume(world, &drivers, &boot_sector(READ_AND_PRINT)).await;
            drivers.switch.apply(tables()).await.unwrap();
            drivers.machines.start(&machine()).await.unwrap();
            prints_more(&drivers).await;
        });
        // Without a daemon nobody replaces the owner, and without the file nobody can.
        world.kill(&disk);
        std::fs::rename(&file, &aside).unwrap();
        world.daemon(|node, drivers| {
            let (disk, file, aside) = (&disk, &file, &aside);
            async move {
                assert_eq!(
                    drivers.machines.list().await.unwrap(),
                    [(SERVER, PowerState::Running)]
                );
                let dead = world
                    .children()
                    .get(disk)
                    .map(|record| record.pid)
                    .unwrap_or_default();
                assert_eq!(
                    status(&drivers).await.vhost_user,
                    BTreeMap::from([(PORT, true)]),
                    "what can be adopted is"
                );
                // As soon as the file is there again, so is its owner.
                std::fs::rename(aside, file).unwrap();
                world.successor(disk, dead).await;
                prints_more(&drivers).await;
                drivers.machines.stop(SERVER, StopMode::Hard).await.unwrap();
                assert_eq!(world.children().keys().collect::<Vec<_>>(), ["switch"]);
                node.tear_down(StopMode::Hard).await.unwrap();
                world.assert_clean();
            }
        });
    });
}

pub fn a_node_of_threads_runs_a_guest() {
    in_a_world(|world| {
        world.daemon_with(Isolation::Thread, |node, drivers| async move {
            make_volume(world, &drivers, &boot_sector(READ_AND_PRINT)).await;
            drivers.switch.apply(tables()).await.unwrap();
            drivers.machines.start(&machine()).await.unwrap();
            prints_more(&drivers).await;
            assert!(
                world.children().is_empty(),
                "nothing outlives the process, so nothing is written down"
            );
            drivers.machines.stop(SERVER, StopMode::Hard).await.unwrap();
            assert!(drivers.machines.list().await.unwrap().is_empty());
            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
        });
    });
}

pub fn uploads_are_converted_or_refused() {
    in_a_world(|world| {
        world.daemon(|node, drivers| async move {
            let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 4096 % 251) as u8).collect();
            let raw = world.folder.join("content.raw");
            std::fs::write(&raw, &content).unwrap();
            let image = |driver: &str| {
                let image = world.folder.join(format!("content.{driver}"));
                let made = Command::new("qemu-img")
                    .args(["convert", "-O", driver])
                    .arg(&raw)
                    .arg(&image)
                    .status()
                    .unwrap();
                assert!(made.success());
                image
            };
            let images = [
                (1, image("qcow2"), ImageFormat::Qcow2),
                (2, image("vmdk"), ImageFormat::Vmdk),
                (4, image("vpc"), ImageFormat::Vhd),
                (5, image("vhdx"), ImageFormat::Vhdx),
                (6, raw.clone(), ImageFormat::Raw),
            ];
            for (number, path, format) in &images {
                let (number, format) = (*number, *format);
                let image = Uuid::from_u128(number);
                let converted = drivers.disks.import_image(image, path, format).await.unwrap();
                assert!(converted.virtual_size >= content.len() as u64);
                let stored = std::fs::read(drivers.disks.image_path(image)).unwrap();
                assert_eq!(stored[..content.len()], content, "{format:?}");
                assert!(!path.exists(), "the upload is gone");
                drivers
                    .disks
                    .create_volume(image, 8 << 20, VolumeSource::Image(image), None)
                    .await
                    .unwrap();
            }
            let refused = world.folder.join("refused");
            std::fs::write(&refused, &content).unwrap();
            let error = drivers
                .disks
                .import_image(Uuid::from_u128(3), &refused, ImageFormat::Qcow2)
                .await
                .unwrap_err();
            assert!(matches!(error, DriverError::BadInput(_)), "{error}");
            assert!(!refused.exists() && !drivers.disks.image_path(Uuid::from_u128(3)).exists());
            assert_eq!(drivers.disks.list_volumes().await.unwrap().len(), images.len());
            node.tear_down(StopMode::Hard).await.unwrap();
            world.assert_clean();
            assert!(Path::new(&world.folder.join("pool.xfs")).exists(), "volumes stay");
        });
    });
}
