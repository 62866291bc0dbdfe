//! For tests of this room and of those above: a cloud in a temporary folder, with drivers that do nothing but remember.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use model::disk::{BackedUp, Converted, DiskLimits, ImageFormat, PoolUsage, VolumeSource};
use model::machine::{Machine, MachineDisk, MachineEvent, MachineNic, PowerState, StopMode};
use model::net::{SwitchStatus, Tables};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::driver::{Capacity, Disks, DriverError, Drivers, Machines, Switch, Web, WebFile};
use crate::{Cloud, Config, Context};

/// The password of the user `admin` in test clouds.
pub const ADMIN_PASSWORD: &str = "test-admin-password";

/// A cloud whose folder is removed with it.
pub struct TestCloud {
    /// The cloud.
    pub cloud: Arc<Cloud>,
    /// What its drivers were asked for.
    pub drivers: Arc<Remembering>,
    /// Its folder.
    pub dir: tempfile::TempDir,
}

/// A new cloud, bootstrapped, with cheap password hashing.
pub async fn cloud() -> TestCloud {
    cloud_at("http://127.0.0.1:8774").await
}

/// The same, with a public URL.
pub async fn cloud_at(public_url: &str) -> TestCloud {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = Config {
        region: "RegionOne".into(),
        public_url: public_url.into(),
        secrets_dir: dir.path().join("secrets"),
        staging_dir: dir.path().join("staging"),
        max_image_bytes: 1 << 30,
        max_project_image_bytes: 1 << 40,
        node: "node1".into(),
        availability_zone: "nova".into(),
        dns_servers: vec!["192.0.2.53".parse().expect("an address")],
        ntp_servers: vec![],
        external: Some(crate::config::External {
            cidr: "203.0.113.0/24".parse().expect("a range"),
            tap: "allod0".into(),
        }),
        mtu: 1442,
        accounts: crate::config::Accounts {
            unique_last_passwords: 2,
            ..Default::default()
        },
        encrypt_volumes: true,
        key_lifetime: std::time::Duration::from_secs(90 * 86400),
        catalogue: crate::config::Catalogue::default(),
    };
    let drivers = Arc::new(Remembering::new(dir.path().join("images")));
    let identity = Arc::new(
        crate::identity::Identity::open(&config.secrets_dir)
            .expect("an identity service")
            .with_password_cost(crate::identity::password::Cost::CHEAP),
    );
    let store = store::Store::open(store::Options {
        dir: dir.path().join("store"),
        steps: crate::schema::STEPS,
        projections: vec![identity.clone()],
    })
    .await
    .expect("a store");
    let all = Drivers {
        machines: drivers.clone(),
        disks: drivers.clone(),
        switch: drivers.clone(),
        web: drivers.clone(),
    };
    let cloud = Arc::new(Cloud {
        store,
        config,
        drivers: all,
        identity,
        workers: Default::default(),
    });
    crate::identity::bootstrap(&cloud, ADMIN_PASSWORD)
        .await
        .expect("a bootstrapped cloud");
    TestCloud { cloud, drivers, dir }
}

impl TestCloud {
    /// A token of the user `admin` on the project `admin`.
    pub async fn admin_token(&self) -> String {
        self.token("admin", "admin", "admin").await
    }

    /// A token of a user on a project with a role; user, project and assignment are made where they are missing
    /// (domain `Default`).
    pub async fn token(&self, user: &str, project: &str, role: &str) -> String {
        let scope = self.grant(user, project, role).await;
        self.cloud
            .identity
            .issue(&scope.0, scope.1, &["password"])
            .expect("a token")
            .0
    }

    /// What [`TestCloud::token`]'s token validates to.
    pub async fn context(&self, user: &str, project: &str, role: &str) -> Context {
        let token = self.token(user, project, role).await;
        self.cloud.identity.validate(&token).expect("a valid token")
    }

    async fn grant(&self, user: &str, project: &str, role: &str) -> (String, crate::context::Scope) {
        let ids = crate::identity::testing_grant(&self.cloud, user, project, role)
            .await
            .expect("a grant");
        (
            ids.0,
            crate::context::Scope::Project {
                id: ids.1,
                domain_id: "default".into(),
            },
        )
    }
}

/// Drivers that do nothing but remember.
pub struct Remembering {
    /// What the node says that it has.
    pub capacity: Capacity,
    images: PathBuf,
    events: broadcast::Sender<MachineEvent>,
    state: Mutex<Remembered>,
}

/// What drivers were asked for.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Machines with a process.
    pub machines: BTreeMap<Uuid, (Machine, PowerState)>,
    /// Volumes, their sizes and what they were made of.
    pub volumes: BTreeMap<Uuid, (u64, VolumeSource)>,
    /// Snapshots and their sizes.
    pub snapshots: BTreeMap<Uuid, u64>,
    /// Backups and their volumes' sizes.
    pub backups: BTreeMap<Uuid, u64>,
    /// Images.
    pub images: BTreeSet<Uuid>,
    /// The lineages of volumes, snapshots and backups that are encrypted.
    pub lineages: BTreeMap<Uuid, Uuid>,
    /// Lineages that have an image.
    pub sealed: BTreeSet<Uuid>,
    /// The switch's tables.
    pub tables: Option<Arc<Tables>>,
    /// Calls in their order, such as `start <id>`.
    pub calls: Vec<String>,
    /// The next call of this name fails with this.
    pub fail: Vec<(&'static str, DriverError)>,
    /// Long calls do not come back.
    pub hang: bool,
    /// Files of the web; those that are not there cannot be reached.
    pub web: BTreeMap<String, WebPage>,
}

/// A file of the web.
#[derive(Debug, Clone, Default)]
pub struct WebPage {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the server says of their number.
    pub length: Option<u64>,
    /// And of its last change.
    pub modified: Option<i64>,
    /// What happens after the last of them.
    pub end: WebEnd,
}

/// How a file of the web ends.
#[derive(Debug, Clone, Default)]
pub enum WebEnd {
    /// It is whole.
    #[default]
    Whole,
    /// It breaks off, with these words.
    BrokenOff(String),
    /// Nothing more comes, for ever.
    Silence,
}

impl WebPage {
    /// A whole file.
    pub fn whole(bytes: &[u8]) -> Self {
        WebPage {
            bytes: bytes.to_vec(),
            length: Some(bytes.len() as u64),
            modified: None,
            end: WebEnd::Whole,
        }
    }
}

impl Remembered {
    /// A file is of this lineage from now on, or of none.
    fn follow(&mut self, file: Uuid, lineage: Option<Uuid>) {
        match lineage {
            Some(lineage) => self.lineages.insert(file, lineage),
            None => self.lineages.remove(&file),
        };
    }
}

impl Remembering {
    /// Images are kept as plain files in this folder.
    pub fn new(images: PathBuf) -> Self {
        Remembering {
            capacity: Capacity {
                vcpus: 16,
                memory_mib: 65_536,
                engine: "qemu".into(),
            },
            images,
            events: broadcast::channel(256).0,
            state: Mutex::default(),
        }
    }

    /// What they were asked for until now.
    pub fn state(&self) -> MutexGuard<'_, Remembered> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Let the next call of this name fail; told twice, the next two.
    pub fn fail_next(&self, call: &'static str, error: DriverError) {
        self.state().fail.push((call, error));
    }

    /// What takes long takes for ever, if it is to.
    async fn take_long(&self) {
        let hang = self.state().hang;
        if hang {
            std::future::pending::<()>().await;
        }
    }

    /// A guest changes its state by itself.
    pub fn happen(&self, id: Uuid, power: PowerState) {
        if let Some(machine) = self.state().machines.get_mut(&id) {
            machine.1 = power;
        }
        let _ = self.events.send(MachineEvent { id, state: power });
    }

    fn call(
        &self,
        name: &'static str,
        id: impl std::fmt::Display,
    ) -> Result<MutexGuard<'_, Remembered>, DriverError> {
        let mut state = self.state();
        state.calls.push(format!("{name} {id}"));
        match state.fail.iter().position(|(call, _)| *call == name) {
            Some(at) => Err(state.fail.remove(at).1),
            None => Ok(state),
        }
    }

    /// The size of what a volume is made of.
    fn source_size(&self, source: VolumeSource) -> Result<u64, DriverError> {
        let state = self.state();
        let size = match source {
            VolumeSource::Empty | VolumeSource::Image(_) => Some(0),
            VolumeSource::Volume(id) => state.volumes.get(&id).map(|(size, _)| *size),
            VolumeSource::Snapshot(id) => state.snapshots.get(&id).copied(),
        };
        size.ok_or_else(|| DriverError::Failed(format!("{source:?} is not there")))
    }

    /// Changes a running machine; of one that does not run nothing is known.
    fn change(
        &self,
        name: &'static str,
        id: Uuid,
        change: impl FnOnce(&mut Machine),
    ) -> Result<(), DriverError> {
        if let Some((machine, _)) = self.call(name, id)?.machines.get_mut(&id) {
            change(machine);
        }
        Ok(())
    }

    fn power(&self, name: &'static str, id: Uuid, power: PowerState) -> Result<(), DriverError> {
        if let Some(machine) = self.call(name, id)?.machines.get_mut(&id) {
            machine.1 = power;
        }
        Ok(())
    }
}

#[async_trait]
impl Machines for Remembering {
    async fn start(&self, machine: &Machine) -> Result<(), DriverError> {
        self.call("start", machine.id)?
            .machines
            .insert(machine.id, (machine.clone(), PowerState::Running));
        Ok(())
    }

    async fn stop(&self, id: Uuid, _: StopMode) -> Result<(), DriverError> {
        self.call("stop", id)?.machines.remove(&id);
        Ok(())
    }

    async fn reset(&self, id: Uuid) -> Result<(), DriverError> {
        self.power("reset", id, PowerState::Running)
    }

    async fn pause(&self, id: Uuid) -> Result<(), DriverError> {
        self.power("pause", id, PowerState::Paused)
    }

    async fn resume(&self, id: Uuid) -> Result<(), DriverError> {
        self.power("resume", id, PowerState::Running)
    }

    async fn forget(&self, id: Uuid) -> Result<(), DriverError> {
        self.call("forget", id)?.machines.remove(&id);
        Ok(())
    }

    async fn attach_disk(&self, machine: Uuid, disk: &MachineDisk) -> Result<(), DriverError> {
        self.change("attach_disk", machine, |machine| {
            if !machine.disks.iter().any(|other| other.volume == disk.volume) {
                machine.disks.push(disk.clone());
            }
        })
    }

    async fn detach_disk(&self, machine: Uuid, volume: Uuid) -> Result<(), DriverError> {
        self.change("detach_disk", machine, |machine| {
            machine.disks.retain(|disk| disk.volume != volume);
        })
    }

    async fn resize_disk(&self, volume: Uuid, size: u64) -> Result<(), DriverError> {
        let mut state = self.call("resize_disk", volume)?;
        let disks = state
            .machines
            .values_mut()
            .flat_map(|(machine, _)| &mut machine.disks);
        for disk in disks.filter(|disk| disk.volume == volume) {
            disk.size = size;
        }
        Ok(())
    }

    async fn disk_limits(&self, machine: Uuid) -> Result<Vec<(Uuid, DiskLimits)>, DriverError> {
        let state = self.state();
        let disks = state.machines.get(&machine).map(|(machine, _)| &machine.disks);
        let disks = disks.into_iter().flatten();
        Ok(disks.map(|disk| (disk.volume, disk.limits)).collect())
    }

    async fn limit_disk(&self, machine: Uuid, volume: Uuid, limits: &DiskLimits) -> Result<(), DriverError> {
        self.change("limit_disk", machine, |machine| {
            let disks = machine.disks.iter_mut();
            disks
                .filter(|disk| disk.volume == volume)
                .for_each(|disk| disk.limits = *limits);
        })
    }

    async fn attach_port(&self, machine: Uuid, nic: &MachineNic) -> Result<(), DriverError> {
        self.change("attach_port", machine, |machine| {
            if !machine.nics.iter().any(|other| other.port == nic.port) {
                machine.nics.push(nic.clone());
            }
        })
    }

    async fn detach_port(&self, machine: Uuid, port: Uuid) -> Result<(), DriverError> {
        self.change("detach_port", machine, |machine| {
            machine.nics.retain(|nic| nic.port != port);
        })
    }

    async fn list(&self) -> Result<Vec<(Uuid, PowerState)>, DriverError> {
        Ok(self
            .state()
            .machines
            .iter()
            .map(|(id, (_, power))| (*id, *power))
            .collect())
    }

    async fn console_log(&self, id: Uuid, max_bytes: usize) -> Result<Vec<u8>, DriverError> {
        let text = format!("allod test console of {id}\nlogin: ").into_bytes();
        Ok(text[text.len().saturating_sub(max_bytes)..].to_vec())
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }

    fn capacity(&self) -> Capacity {
        self.capacity.clone()
    }
}

#[async_trait]
impl Disks for Remembering {
    /// The raw image is a copy of what was uploaded, whatever its format.
    async fn import_image(
        &self,
        image: Uuid,
        uploaded: &Path,
        format: ImageFormat,
    ) -> Result<Converted, DriverError> {
        drop(self.call("import_image", image)?);
        let failed = |e: std::io::Error| DriverError::Failed(e.to_string());
        std::fs::create_dir_all(&self.images).map_err(failed)?;
        let size = std::fs::copy(uploaded, self.image_path(image)).map_err(failed)?;
        std::fs::remove_file(uploaded).map_err(failed)?;
        self.state().images.insert(image);
        Ok(Converted {
            format,
            virtual_size: size,
            allocated: size,
        })
    }

    fn image_path(&self, image: Uuid) -> PathBuf {
        self.images.join(image.to_string())
    }

    async fn delete_image(&self, image: Uuid) -> Result<(), DriverError> {
        self.call("delete_image", image)?.images.remove(&image);
        let _ = std::fs::remove_file(self.image_path(image));
        Ok(())
    }

    async fn create_volume(
        &self,
        volume: Uuid,
        size: u64,
        source: VolumeSource,
        lineage: Option<Uuid>,
    ) -> Result<(), DriverError> {
        drop(self.call("create_volume", volume)?);
        let least = self.source_size(source)?;
        if size < least {
            return Err(DriverError::BadInput(format!(
                "{size} bytes are too few: {least} are needed"
            )));
        }
        let mut state = self.state();
        state.volumes.entry(volume).or_insert((size, source));
        if let (VolumeSource::Image(_), Some(lineage)) = (source, lineage) {
            state.sealed.insert(lineage);
        }
        let lineage = match source {
            VolumeSource::Empty | VolumeSource::Image(_) => lineage,
            VolumeSource::Volume(from) | VolumeSource::Snapshot(from) => state.lineages.get(&from).copied(),
        };
        state.follow(volume, lineage);
        Ok(())
    }

    async fn list_lineages(&self) -> Result<Vec<Uuid>, DriverError> {
        Ok(self.state().sealed.iter().copied().collect())
    }

    async fn delete_lineage(&self, lineage: Uuid) -> Result<(), DriverError> {
        self.call("delete_lineage", lineage)?.sealed.remove(&lineage);
        Ok(())
    }

    async fn grow_volume(&self, volume: Uuid, size: u64) -> Result<(), DriverError> {
        match self.call("grow_volume", volume)?.volumes.get_mut(&volume) {
            Some(known) => known.0 = size,
            None => return Err(DriverError::Failed(format!("volume {volume} is not there"))),
        }
        Ok(())
    }

    async fn snapshot_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError> {
        drop(self.call("snapshot_volume", snapshot)?);
        let size = self.source_size(VolumeSource::Volume(volume))?;
        let mut state = self.state();
        state.snapshots.insert(snapshot, size);
        let lineage = state.lineages.get(&volume).copied();
        state.follow(snapshot, lineage);
        Ok(())
    }

    async fn revert_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError> {
        let mut state = self.call("revert_volume", volume)?;
        match (
            state.volumes.contains_key(&volume),
            state.snapshots.contains_key(&snapshot),
        ) {
            (true, true) => {
                let lineage = state.lineages.get(&snapshot).copied();
                state.follow(volume, lineage);
                Ok(())
            }
            _ => Err(DriverError::Failed(format!(
                "{volume} or {snapshot} is not there"
            ))),
        }
    }

    async fn delete_snapshot(&self, snapshot: Uuid) -> Result<(), DriverError> {
        self.call("delete_snapshot", snapshot)?
            .snapshots
            .remove(&snapshot);
        Ok(())
    }

    async fn back_up(&self, source: VolumeSource, backup: Uuid) -> Result<BackedUp, DriverError> {
        drop(self.call("back_up", backup)?);
        self.take_long().await;
        let size = self.source_size(source)?;
        let mut state = self.state();
        state.backups.insert(backup, size);
        if let VolumeSource::Volume(from) | VolumeSource::Snapshot(from) = source {
            let lineage = state.lineages.get(&from).copied();
            state.follow(backup, lineage);
        }
        Ok(BackedUp {
            size,
            stored: 0,
            sha256: "0".repeat(64),
        })
    }

    async fn restore_backup(&self, backup: Uuid, volume: Uuid) -> Result<(), DriverError> {
        let mut state = self.call("restore_backup", volume)?;
        match (state.backups.get(&backup), state.volumes.get(&volume)) {
            (Some(size), Some((room, _))) if size <= room => {
                let lineage = state.lineages.get(&backup).copied();
                state.follow(volume, lineage);
                Ok(())
            }
            _ => Err(DriverError::Failed(format!(
                "backup {backup} does not fit into volume {volume}"
            ))),
        }
    }

    async fn list_backups(&self) -> Result<Vec<Uuid>, DriverError> {
        Ok(self.state().backups.keys().copied().collect())
    }

    async fn delete_backup(&self, backup: Uuid) -> Result<(), DriverError> {
        self.call("delete_backup", backup)?.backups.remove(&backup);
        Ok(())
    }

    /// The image is a sparse file of the volume's size.
    async fn image_from_volume(&self, volume: Uuid, image: Uuid) -> Result<Converted, DriverError> {
        drop(self.call("image_from_volume", image)?);
        self.take_long().await;
        let size = self.source_size(VolumeSource::Volume(volume))?;
        let failed = |e: std::io::Error| DriverError::Failed(e.to_string());
        std::fs::create_dir_all(&self.images).map_err(failed)?;
        let file = std::fs::File::create(self.image_path(image)).map_err(failed)?;
        file.set_len(size).map_err(failed)?;
        self.state().images.insert(image);
        Ok(Converted {
            format: ImageFormat::Raw,
            virtual_size: size,
            allocated: 0,
        })
    }

    async fn delete_volume(&self, volume: Uuid) -> Result<(), DriverError> {
        self.call("delete_volume", volume)?.volumes.remove(&volume);
        Ok(())
    }

    async fn list_volumes(&self) -> Result<Vec<Uuid>, DriverError> {
        Ok(self.state().volumes.keys().copied().collect())
    }

    async fn usage(&self) -> Result<PoolUsage, DriverError> {
        Ok(PoolUsage {
            path: self.images.clone(),
            total: 1 << 40,
            free: 1 << 39,
            reflinks: true,
        })
    }
}

#[async_trait]
impl Switch for Remembering {
    async fn apply(&self, tables: Arc<Tables>) -> Result<(), DriverError> {
        let mut state = self.call("apply", tables.generation)?;
        state.tables = Some(tables);
        Ok(())
    }

    async fn status(&self) -> Result<SwitchStatus, DriverError> {
        let generation = self.state().tables.as_ref().map_or(0, |t| t.generation);
        Ok(SwitchStatus {
            generation,
            ..SwitchStatus::default()
        })
    }
}

#[async_trait]
impl Web for Remembering {
    fn check(&self, uri: &str) -> Result<(), DriverError> {
        if uri.starts_with("http://") || uri.starts_with("https://") {
            return Ok(());
        }
        Err(DriverError::BadInput(
            "Only URIs of http and https are fetched.".into(),
        ))
    }

    async fn get(&self, uri: &str) -> Result<WebFile, DriverError> {
        let page = self.call("web_get", uri)?.web.get(uri).cloned();
        let page = page.ok_or_else(|| DriverError::BadInput("The server cannot be reached.".into()))?;
        let chunks: Vec<_> = page
            .bytes
            .chunks(1000)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        let chunks = futures::stream::iter(chunks);
        let bytes = match page.end {
            WebEnd::Whole => chunks.boxed(),
            WebEnd::BrokenOff(text) => chunks
                .chain(futures::stream::iter([Err(DriverError::BadInput(text))]))
                .boxed(),
            WebEnd::Silence => chunks.chain(futures::stream::pending()).boxed(),
        };
        Ok(WebFile {
            length: page.length,
            modified: page.modified,
            bytes,
        })
    }
}
