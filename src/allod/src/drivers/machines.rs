//! Virtual machines: the engine's process, the owners of its disks, its ports in the switch.
//!
//! A machine's folder, `<state>/machines/<id>`, is private to the daemon:
//! ```text
//! machine.json        what it is made of by now, for the next daemon
//! sockets/            disk-…, net-…, config: all that the guest's engine sees of the host's sockets
//! disk-….control, …   control sockets of the disks' owners
//! config-drive.img    its config drive
//! console.*.log, qmp.sock, exit.json: the engine's
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cloud::driver::{Capacity, Disks, DriverError, Machines};
use model::disk::{DiskLimits, DiskSpec, DiskTransport};
use model::machine::{Boot, Machine, MachineDisk, MachineEvent, MachineNic, PowerState, StopMode};
use process::child::Launcher;
use tokio::sync::broadcast;
use tracing::{error, info, warn};
use uuid::Uuid;
use vmm::{Embedded, Engine, Plan, PlannedBoot, PlannedDevice, PlannedDisk, PlannedNic, console};

use super::disks::DisksDriver;
use super::failed;
use super::owners::{self, Disk, Owner};
use super::switch::SwitchDriver;

/// Request queues of a disk: more than this gain nothing in software.
const MAX_QUEUES: u32 = 4;

/// The longest wait between two tries to take over what an earlier daemon left.
const TAKE_OVER: Duration = Duration::from_secs(60);

/// The machines driver.
#[derive(Clone)]
pub struct MachinesDriver {
    shared: Arc<Shared>,
}

struct Shared {
    launcher: Arc<Launcher>,
    engine: Box<dyn Engine>,
    switch: SwitchDriver,
    disks: DisksDriver,
    folder: PathBuf,
    /// One lock per machine: its calls are obeyed one at a time.
    machines: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<Parts>>>>,
    events: broadcast::Sender<MachineEvent>,
    /// What happened before anyone listened: the first listener gets it.
    early: Mutex<Option<broadcast::Receiver<MachineEvent>>>,
}

/// What belongs to a running machine besides its engine.
#[derive(Default)]
struct Parts {
    /// By volume; the config drive's by the machine.
    owners: Vec<(Uuid, Owner)>,
    ports: Vec<Uuid>,
}

impl MachinesDriver {
    /// Machines in this folder, run by this engine.
    pub fn new(
        launcher: Arc<Launcher>,
        engine: Box<dyn Engine>,
        switch: SwitchDriver,
        disks: DisksDriver,
        folder: PathBuf,
    ) -> Self {
        let (events, early) = broadcast::channel(1024);
        let early = Mutex::new(Some(early));
        let machines = Mutex::default();
        MachinesDriver {
            shared: Arc::new(Shared {
                launcher,
                engine,
                switch,
                disks,
                folder,
                machines,
                events,
                early,
            }),
        }
    }

    /// Take over what an earlier daemon left: running machines with their disks and ports; leftovers of others go.
    pub async fn open(&self) -> Result<(), DriverError> {
        let shared = &self.shared;
        private_folder(&shared.folder).map_err(failed)?;
        let mut events = shared.engine.events();
        shared.engine.adopt().await.map_err(failed)?;
        for id in known(&shared.folder).map_err(failed)? {
            // One broken machine does not keep the daemon, and with it all others, from its start.
            if let Err(error) = shared.take_over(id).await {
                error!(server = %id, %error, "a machine cannot be taken over, and is tried again");
                tokio::spawn(self.clone().take_over_later(id));
            }
        }
        let driver = self.clone();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => driver.follow(event).await,
                    Err(broadcast::error::RecvError::Lagged(lost)) => warn!(lost, "guests' events were lost"),
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
        });
        Ok(())
    }

    /// Tries until it is done, or nothing is left to be done.
    async fn take_over_later(self, id: Uuid) {
        let mut wait = Duration::from_secs(1);
        loop {
            tokio::time::sleep(wait).await;
            match self.shared.take_over(id).await {
                Ok(()) => break,
                Err(error) => warn!(server = %id, %error, ?wait, "a machine still cannot be taken over"),
            }
            wait = (wait * 2).min(TAKE_OVER);
        }
        info!(server = %id, "machine taken over");
    }

    /// A machine ended (or paused) by itself.
    async fn follow(&self, event: MachineEvent) {
        if matches!(event.state, PowerState::Shutdown | PowerState::Crashed) {
            let parts = self.shared.parts(event.id);
            let mut parts = parts.lock().await;
            // Somebody may have started it again meanwhile.
            if !self.shared.runs(event.id)
                && let Err(error) = self.shared.clear(event.id, &mut parts).await
            {
                error!(server = %event.id, %error, "clean-up after a guest's end");
            }
        }
        let _ = self.shared.events.send(event);
    }

    /// Stop all machines.
    pub async fn tear_down(&self, mode: StopMode) -> Result<(), DriverError> {
        let ids: Vec<Uuid> = self.shared.engine.list().into_iter().map(|(id, _)| id).collect();
        let stops = ids.into_iter().map(|id| self.stop(id, mode));
        futures::future::join_all(stops).await.into_iter().collect()
    }
}

#[async_trait]
impl Machines for MachinesDriver {
    async fn start(&self, machine: &Machine) -> Result<(), DriverError> {
        let shared = &self.shared;
        let parts = shared.parts(machine.id);
        let mut parts = parts.lock().await;
        if shared.runs(machine.id) {
            return Ok(());
        }
        // What an earlier try may have left.
        shared.clear(machine.id, &mut parts).await?;
        let started = shared.start(machine, &mut parts).await;
        if started.is_err()
            && let Err(error) = shared.clear(machine.id, &mut parts).await
        {
            error!(server = %machine.id, %error, "clean-up after a failed start");
        }
        started
    }

    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), DriverError> {
        // Without the machine's lock, so that a hard stop overtakes a graceful one.
        self.shared.engine.stop(id, mode).await.map_err(failed)?;
        let parts = self.shared.parts(id);
        let mut parts = parts.lock().await;
        if self.shared.runs(id) {
            Ok(())
        } else {
            self.shared.clear(id, &mut parts).await
        }
    }

    async fn reset(&self, id: Uuid) -> Result<(), DriverError> {
        self.shared.engine.reset(id).await.map_err(failed)
    }

    async fn pause(&self, id: Uuid) -> Result<(), DriverError> {
        self.shared.engine.pause(id).await.map_err(failed)
    }

    async fn resume(&self, id: Uuid) -> Result<(), DriverError> {
        self.shared.engine.resume(id).await.map_err(failed)
    }

    async fn forget(&self, id: Uuid) -> Result<(), DriverError> {
        let parts = self.shared.parts(id);
        let mut parts = parts.lock().await;
        if self.shared.runs(id) {
            return Err(DriverError::Failed(format!(
                "server {id} runs: stop it before it is forgotten"
            )));
        }
        self.shared.clear(id, &mut parts).await?;
        match fs::remove_dir_all(self.shared.folder(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        for name in [vmm::child_name(id), config_drive_name(id)] {
            self.shared.launcher.remove_log(&name).map_err(failed)?;
        }
        self.shared.machines().remove(&id);
        Ok(())
    }

    async fn attach_disk(&self, machine: Uuid, disk: &MachineDisk) -> Result<(), DriverError> {
        let shared = &self.shared;
        let parts = shared.parts(machine);
        let mut parts = parts.lock().await;
        if !shared.runs(machine) {
            return Ok(());
        }
        // Written down first: should this daemon end now, the next one finds what it has begun.
        let described = shared.describe(machine, |machine| {
            if !machine.disks.iter().any(|other| other.volume == disk.volume) {
                machine.disks.push(disk.clone());
            }
        })?;
        let attached = shared.attach_disk(&described, disk.volume, &mut parts).await;
        if let Err(error) = &attached
            && let Err(second) = shared.detach_disk(machine, disk.volume, &mut parts).await
        {
            error!(server = %machine, volume = %disk.volume, %error, %second, "clean-up after a failed attachment");
        }
        attached
    }

    async fn detach_disk(&self, machine: Uuid, volume: Uuid) -> Result<(), DriverError> {
        let parts = self.shared.parts(machine);
        let mut parts = parts.lock().await;
        if !self.shared.runs(machine) {
            return Ok(());
        }
        self.shared.detach_disk(machine, volume, &mut parts).await
    }

    async fn resize_disk(&self, volume: Uuid, size: u64) -> Result<(), DriverError> {
        let shared = &self.shared;
        let Some(machine) = shared.machine_with(volume)? else {
            return Ok(());
        };
        let parts = shared.parts(machine);
        let parts = parts.lock().await;
        let owner = parts.owners.iter().find(|(id, _)| *id == volume);
        // Without an owner it is the engine that serves the volume, if anything does.
        if owner.is_none() && !shared.runs(machine) {
            return Ok(());
        }
        shared.describe(machine, |machine| {
            for disk in &mut machine.disks {
                if disk.volume == volume {
                    disk.size = size;
                }
            }
        })?;
        if let Some((_, owner)) = owner {
            owner.resize(size).await?;
        }
        if !shared.runs(machine) {
            return Ok(());
        }
        let socket = disk_socket(volume);
        shared.engine.resize(machine, &socket, size).await.map_err(failed)
    }

    async fn disk_limits(&self, machine: Uuid) -> Result<Vec<(Uuid, DiskLimits)>, DriverError> {
        if !self.shared.runs(machine) {
            return Ok(Vec::new());
        }
        let described = read_machine(&self.shared.folder(machine)).map_err(failed)?;
        let limits = |disk: &MachineDisk| (disk.volume, disk.limits);
        Ok(described.disks.iter().map(limits).collect())
    }

    async fn limit_disk(&self, machine: Uuid, volume: Uuid, limits: &DiskLimits) -> Result<(), DriverError> {
        let shared = &self.shared;
        let parts = shared.parts(machine);
        let parts = parts.lock().await;
        if !shared.runs(machine) {
            return Ok(());
        }
        let described = read_machine(&shared.folder(machine)).map_err(failed)?;
        if !described.disks.iter().any(|disk| disk.volume == volume) {
            return Ok(());
        }
        match parts.owners.iter().find(|(id, _)| *id == volume) {
            Some((_, owner)) => owner.limit(*limits).await?,
            // It is the engine that serves the volume.
            None => {
                let socket = disk_socket(volume);
                shared
                    .engine
                    .limit(machine, &socket, limits)
                    .await
                    .map_err(failed)?;
            }
        }
        // Written down last: what is written down has been told.
        shared
            .describe(machine, |machine| {
                for disk in &mut machine.disks {
                    if disk.volume == volume {
                        disk.limits = *limits;
                    }
                }
            })
            .map(drop)
    }

    async fn attach_port(&self, machine: Uuid, nic: &MachineNic) -> Result<(), DriverError> {
        let shared = &self.shared;
        let parts = shared.parts(machine);
        let mut parts = parts.lock().await;
        if !shared.runs(machine) {
            return Ok(());
        }
        shared.describe(machine, |machine| {
            if !machine.nics.iter().any(|other| other.port == nic.port) {
                machine.nics.push(nic.clone());
            }
        })?;
        let attached = shared.attach_port(machine, nic, &mut parts).await;
        if let Err(error) = &attached
            && let Err(second) = shared.detach_port(machine, nic.port, &mut parts).await
        {
            error!(server = %machine, port = %nic.port, %error, %second, "clean-up after a failed attachment");
        }
        attached
    }

    async fn detach_port(&self, machine: Uuid, port: Uuid) -> Result<(), DriverError> {
        let parts = self.shared.parts(machine);
        let mut parts = parts.lock().await;
        if !self.shared.runs(machine) {
            return Ok(());
        }
        self.shared.detach_port(machine, port, &mut parts).await
    }

    async fn list(&self) -> Result<Vec<(Uuid, PowerState)>, DriverError> {
        Ok(self.shared.engine.list())
    }

    async fn console_log(&self, id: Uuid, max_bytes: usize) -> Result<Vec<u8>, DriverError> {
        let folder = self.shared.folder(id);
        tokio::task::spawn_blocking(move || console::tail(&folder, max_bytes))
            .await
            .map_err(failed)?
            .map_err(failed)
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        let early = self
            .shared
            .early
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        early.unwrap_or_else(|| self.shared.events.subscribe())
    }

    fn capacity(&self) -> Capacity {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Capacity {
            vcpus: u32::try_from(processors).unwrap_or(u32::MAX),
            memory_mib: memory_mib(),
            engine: self.shared.engine.name().into(),
        }
    }
}

impl Shared {
    fn machines(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Arc<tokio::sync::Mutex<Parts>>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self, id: Uuid) -> Arc<tokio::sync::Mutex<Parts>> {
        self.machines().entry(id).or_default().clone()
    }

    fn folder(&self, id: Uuid) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn runs(&self, id: Uuid) -> bool {
        self.engine.list().iter().any(|(other, _)| *other == id)
    }

    /// Changes what is written down of a running machine, and returns it.
    fn describe(&self, id: Uuid, change: impl FnOnce(&mut Machine)) -> Result<Machine, DriverError> {
        let folder = self.folder(id);
        let mut machine = read_machine(&folder).map_err(failed)?;
        let before = machine.clone();
        change(&mut machine);
        if machine != before {
            write_machine(&folder, &machine).map_err(failed)?;
        }
        Ok(machine)
    }

    /// The machine that has a volume.
    fn machine_with(&self, volume: Uuid) -> Result<Option<Uuid>, DriverError> {
        Ok(known(&self.folder).map_err(failed)?.into_iter().find(|id| {
            read_machine(&self.folder(*id))
                .is_ok_and(|machine| machine.disks.iter().any(|disk| disk.volume == volume))
        }))
    }

    /// The disk's owner, then the device.
    async fn attach_disk(
        &self,
        machine: &Machine,
        volume: Uuid,
        parts: &mut Parts,
    ) -> Result<(), DriverError> {
        let disk = self.disks_of(machine).into_iter().find(|(id, _)| *id == volume);
        let (_, disk) = disk.ok_or_else(|| failed("a disk that is not written down"))?;
        let planned = planned(&disk).await?;
        if planned.embedded.is_none() && !parts.owners.iter().any(|(id, _)| *id == volume) {
            let owner = Owner::keep(self.launcher.clone(), disk).await?;
            parts.owners.push((volume, owner));
        }
        self.engine
            .plug(machine.id, &PlannedDevice::Disk(Box::new(planned)))
            .await
            .map_err(failed)
    }

    /// The device, then its owner, then what is written down of it.
    async fn detach_disk(&self, machine: Uuid, volume: Uuid, parts: &mut Parts) -> Result<(), DriverError> {
        self.engine
            .unplug(machine, &disk_socket(volume))
            .await
            .map_err(failed)?;
        if let Some(at) = parts.owners.iter().position(|(id, _)| *id == volume) {
            let (_, owner) = parts.owners.remove(at);
            owner.stop(self.launcher.clone()).await?;
        }
        self.forget_device(machine, |machine| {
            machine.disks.retain(|disk| disk.volume != volume);
        })
    }

    /// The switch's side, then the device.
    async fn attach_port(
        &self,
        machine: Uuid,
        nic: &MachineNic,
        parts: &mut Parts,
    ) -> Result<(), DriverError> {
        let path = nic_socket(&self.folder(machine), nic.port);
        if !parts.ports.contains(&nic.port) {
            parts.ports.push(nic.port);
            self.switch.plug(nic.port, path.clone()).await?;
        }
        let planned = PlannedNic {
            socket: file_name(&path),
            mac: nic.mac,
            mtu: nic.mtu,
        };
        self.engine
            .plug(machine, &PlannedDevice::Nic(planned))
            .await
            .map_err(failed)
    }

    async fn detach_port(&self, machine: Uuid, port: Uuid, parts: &mut Parts) -> Result<(), DriverError> {
        let path = nic_socket(&self.folder(machine), port);
        self.engine
            .unplug(machine, &file_name(&path))
            .await
            .map_err(failed)?;
        if let Some(at) = parts.ports.iter().position(|other| *other == port) {
            self.switch.unplug(port).await?;
            parts.ports.remove(at);
        }
        self.forget_device(machine, |machine| machine.nics.retain(|nic| nic.port != port))
    }

    /// Strikes a device off; a machine that has ended meanwhile has been struck off itself.
    fn forget_device(&self, id: Uuid, change: impl FnOnce(&mut Machine)) -> Result<(), DriverError> {
        if self.folder(id).join("machine.json").exists() {
            self.describe(id, change)?;
        }
        Ok(())
    }

    async fn start(&self, machine: &Machine, parts: &mut Parts) -> Result<(), DriverError> {
        let folder = self.folder(machine.id);
        private_folder(&folder).map_err(failed)?;
        let sockets = folder.join("sockets");
        fs::create_dir_all(&sockets).map_err(failed)?;
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        write_machine(&folder, machine).map_err(failed)?;
        if !machine.config_drive.is_empty() {
            let bytes = disk::config_drive::build(&machine.config_drive).map_err(failed)?;
            write_private(&config_drive(&folder), &bytes).map_err(failed)?;
        }
        let disks = self.disks_of(machine);
        let mut planned_disks = Vec::new();
        for (id, disk) in disks {
            let planned = planned(&disk).await?;
            if planned.embedded.is_none() {
                let owner = Owner::keep(self.launcher.clone(), disk).await?;
                parts.owners.push((id, owner));
            }
            planned_disks.push(planned);
        }
        let mut nics = Vec::new();
        for nic in &machine.nics {
            let socket = nic_socket(&folder, nic.port);
            parts.ports.push(nic.port);
            self.switch.plug(nic.port, socket.clone()).await?;
            nics.push(PlannedNic {
                socket: file_name(&socket),
                mac: nic.mac,
                mtu: nic.mtu,
            });
        }
        let plan = Plan {
            id: machine.id,
            name: machine.name.clone(),
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            boot: self.boot(&machine.boot)?,
            disks: planned_disks,
            nics,
            folder,
        };
        self.engine.start(&plan).await.map_err(failed)
    }

    /// What a machine starts with, opened.
    fn boot(&self, boot: &Boot) -> Result<PlannedBoot, DriverError> {
        let open = |image: Uuid| {
            let opened = File::open(self.disks.image_path(image));
            let opened =
                opened.map_err(|error| failed(format!("the image {image} to boot from: {error}")))?;
            Ok::<_, DriverError>(Arc::new(opened))
        };
        Ok(match boot {
            Boot::Bios => PlannedBoot::Bios,
            Boot::Uefi => PlannedBoot::Uefi,
            Boot::Kernel {
                kernel,
                ramdisk,
                command_line,
            } => PlannedBoot::Kernel {
                image: open(*kernel)?,
                initrd: ramdisk.map(open).transpose()?,
                command_line: command_line.clone(),
            },
        })
    }

    /// What an earlier daemon left of a machine: the parts of one that runs; of others nothing is to be left.
    async fn take_over(&self, id: Uuid) -> Result<(), DriverError> {
        let parts = self.parts(id);
        let mut parts = parts.lock().await;
        if !self.runs(id) {
            return self.clear(id, &mut parts).await;
        }
        let machine = read_machine(&self.folder(id)).map_err(failed)?;
        self.adopt_parts(&machine, &mut parts).await
    }

    /// The parts of a machine that ran before this daemon did: all that can be had, and the first error if that is not all.
    async fn adopt_parts(&self, machine: &Machine, parts: &mut Parts) -> Result<(), DriverError> {
        let mut adopted = Ok(());
        for (id, disk) in self.disks_of(machine) {
            let owned = parts.owners.iter().any(|(other, _)| *other == id);
            if owned || disk.spec.transport == DiskTransport::Embedded {
                continue;
            }
            match Owner::keep(self.launcher.clone(), disk).await {
                Ok(owner) => parts.owners.push((id, owner)),
                Err(error) => adopted = adopted.and(Err(error)),
            }
        }
        let folder = self.folder(machine.id);
        for nic in &machine.nics {
            if !parts.ports.contains(&nic.port) {
                parts.ports.push(nic.port);
            }
            let socket = nic_socket(&folder, nic.port);
            adopted = adopted.and(self.switch.adopt_port(nic.port, socket).await);
        }
        adopted
    }

    /// All disks of a machine by their volumes, the config drive last, by the machine's own id.
    fn disks_of(&self, machine: &Machine) -> Vec<(Uuid, Disk)> {
        let folder = self.folder(machine.id);
        let queues = u16::try_from(machine.vcpus.clamp(1, MAX_QUEUES)).unwrap_or(1);
        let transport = self.engine.disk_transport(machine.id);
        let mut disks = Vec::new();
        for disk in &machine.disks {
            let (pool, volume, read_only) = (self.disks.clone(), disk.volume, disk.read_only);
            let socket = disk_socket(volume);
            let of_volume = Disk {
                name: owners::disk_name(volume),
                spec: DiskSpec {
                    id: volume,
                    size: disk.size,
                    read_only,
                    queues,
                    direct: self.disks.direct(),
                    transport,
                    key: None,
                    limits: disk.limits,
                },
                limits: Arc::new(Mutex::new(disk.limits)),
                open: Arc::new(move || pool.open_volume(volume, read_only)),
                control: folder.join(format!("{socket}.control")),
                keys: self.disks.keys(),
                socket: folder.join("sockets").join(socket),
            };
            disks.push((volume, of_volume));
        }
        let path = config_drive(&folder);
        if let Ok(metadata) = path.metadata()
            && !machine.config_drive.is_empty()
        {
            let config = Disk {
                name: config_drive_name(machine.id),
                spec: DiskSpec {
                    id: machine.id,
                    size: metadata.len(),
                    read_only: true,
                    queues: 1,
                    direct: false,
                    transport,
                    key: None,
                    limits: DiskLimits::default(),
                },
                limits: Arc::default(),
                open: Arc::new(move || File::open(&path).map_err(failed)),
                socket: folder.join("sockets").join("config"),
                control: folder.join("config.control"),
                keys: self.disks.keys(),
            };
            disks.push((machine.id, config));
        }
        disks
    }

    /// End all that belongs to a machine that does not run. Its console log stays.
    async fn clear(&self, id: Uuid, parts: &mut Parts) -> Result<(), DriverError> {
        for port in parts.ports.drain(..) {
            self.switch.unplug(port).await?;
        }
        let stops = parts
            .owners
            .drain(..)
            .map(|(_, owner)| owner.stop(self.launcher.clone()));
        futures::future::join_all(stops)
            .await
            .into_iter()
            .collect::<Result<(), _>>()?;
        // Owners that an earlier daemon started, and that this one has not adopted.
        let folder = self.folder(id);
        let Ok(machine) = read_machine(&folder) else {
            return Ok(());
        };
        let mut names: Vec<String> = machine
            .disks
            .iter()
            .map(|disk| owners::disk_name(disk.volume))
            .collect();
        names.push(config_drive_name(id));
        let launcher = self.launcher.clone();
        let killed =
            tokio::task::spawn_blocking(move || names.iter().try_for_each(|n| owners::kill(&launcher, n)));
        killed.await.map_err(failed)??;
        for leftover in ["machine.json", "qmp.sock"] {
            let _ = fs::remove_file(folder.join(leftover));
        }
        let _ = fs::remove_file(config_drive(&folder));
        let _ = fs::remove_dir_all(folder.join("sockets"));
        info!(server = %id, "machine cleared");
        Ok(())
    }
}

fn config_drive(folder: &Path) -> PathBuf {
    folder.join("config-drive.img")
}

fn config_drive_name(machine: Uuid) -> String {
    format!("config-drive-{machine}")
}

/// Short, since the paths of sockets are (unix(7): 108 bytes): enough of the id for one machine's devices.
fn short(id: Uuid) -> String {
    id.simple().to_string().chars().take(12).collect()
}

/// The name of a disk's socket, by which the engine knows the device.
fn disk_socket(volume: Uuid) -> String {
    format!("disk-{}", short(volume))
}

fn nic_socket(folder: &Path, port: Uuid) -> PathBuf {
    folder.join("sockets").join(format!("net-{}", short(port)))
}

/// The disk as the engine needs it: with its file, where the engine is its owner.
async fn planned(disk: &Disk) -> Result<PlannedDisk, DriverError> {
    let embedded = match disk.spec.transport {
        DiskTransport::VhostUser | DiskTransport::Nbd => None,
        DiskTransport::Embedded => {
            let (spec, file) = disk.opened().await?;
            let file = Arc::new(file);
            Some(Embedded { spec, file })
        }
    };
    Ok(PlannedDisk {
        socket: file_name(&disk.socket),
        queues: disk.spec.queues,
        serial: disk.spec.serial(),
        embedded,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Machines that have a folder.
fn known(folder: &Path) -> io::Result<Vec<Uuid>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(folder)? {
        ids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Uuid>().ok()),
        );
    }
    Ok(ids)
}

fn read_machine(folder: &Path) -> io::Result<Machine> {
    Ok(serde_json::from_slice(&fs::read(folder.join("machine.json"))?)?)
}

fn write_machine(folder: &Path, machine: &Machine) -> io::Result<()> {
    write_private(&folder.join("machine.json"), &serde_json::to_vec(machine)?)
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Written whole or not at all; user data may hold secrets.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    io::Write::write_all(&mut file, bytes)?;
    fs::rename(draft, path)
}

/// `MemTotal` of proc_meminfo(5).
fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()
    });
    kib.map_or(0, |kib: u64| kib / 1024)
}

/// Between the power button and the plug when the whole node is taken down.
pub const TEAR_DOWN: StopMode = StopMode::Graceful(Duration::from_secs(20));
