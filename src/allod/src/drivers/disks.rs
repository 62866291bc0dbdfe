//! Volumes and images: the pool, and the conversion of uploads in a jailed child.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use cloud::driver::{DiskKeys, Disks, DriverError, VolumeSource};
use disk::backup::{BackupError, Backups};
use disk::pool::{Pool, PoolError, PoolOptions};
use model::disk::{BackedUp, ConvertSpec, Converted, DiskKey, ImageFormat, PoolUsage};
use process::child::{CgroupLimits, Isolation, Launch, Launcher};
use process::jail::{Files, Limits, Profile};
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::info;
use uuid::Uuid;

use super::children::{self, Conversion};
use super::{failed, owners};

/// Conversions at a time: they are work for the processor and the disk.
const CONVERSIONS: usize = 2;
/// Copies at a time that are encrypted or decrypted.
const COPIES: usize = 2;
/// The most time that one may take.
const MAX_SECONDS: u64 = 1800;
/// The most memory: hostile files ask for more.
const MEMORY: u64 = 1 << 30;

/// The disks driver.
#[derive(Clone)]
pub struct DisksDriver {
    shared: Arc<Shared>,
}

struct Shared {
    launcher: Arc<Launcher>,
    pool: Pool,
    backups: Backups,
    max_virtual_size: u64,
    conversions: Semaphore,
    copies: Semaphore,
    /// Who makes a lineage's image, so that nobody else does at the same time.
    sealing: Mutex<HashMap<Uuid, Weak<tokio::sync::Mutex<()>>>>,
    keys: Arc<dyn DiskKeys>,
}

impl DisksDriver {
    /// Open the pool, or make it.
    pub async fn open(
        launcher: Arc<Launcher>,
        options: PoolOptions,
        backups: PathBuf,
        max_virtual_size: u64,
        keys: Arc<dyn DiskKeys>,
    ) -> Result<Self, DriverError> {
        let opened = blocking(move || {
            let pool = Pool::open_or_create(&options).map_err(told)?;
            let backups = Backups::open(&backups).map_err(backup_told)?;
            Ok((pool, backups))
        });
        let (pool, backups) = opened.await?;
        let conversions = Semaphore::new(CONVERSIONS);
        Ok(DisksDriver {
            shared: Arc::new(Shared {
                launcher,
                pool,
                backups,
                max_virtual_size,
                conversions,
                copies: Semaphore::new(COPIES),
                sealing: Mutex::default(),
                keys,
            }),
        })
    }

    /// Volumes are read and written around the page cache: guests have caches of their own.
    pub fn direct(&self) -> bool {
        true
    }

    /// A volume's file, for its owner.
    pub fn open_volume(&self, volume: Uuid, read_only: bool) -> Result<File, DriverError> {
        self.shared
            .pool
            .open_volume(volume, read_only, self.direct())
            .map_err(told)
    }

    /// Where keys are had from.
    pub fn keys(&self) -> Arc<dyn DiskKeys> {
        self.shared.keys.clone()
    }

    /// The turns of those who want a lineage's image.
    fn turn(&self, lineage: Uuid) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.shared.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, turn| turn.strong_count() > 0);
        let known = all.get(&lineage).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turn = Arc::default();
            all.insert(lineage, Arc::downgrade(&turn));
            turn
        })
    }

    /// The key of a lineage, if there is one.
    async fn key(&self, lineage: Option<Uuid>, purpose: &str) -> Result<Option<DiskKey>, DriverError> {
        match lineage {
            Some(lineage) => self.shared.keys.disk_key(lineage, purpose).await.map(Some),
            None => Ok(None),
        }
    }

    /// Let go of the pool: unmount it, if it was mounted for us.
    pub async fn tear_down(&self) -> Result<(), DriverError> {
        self.with(|shared| shared.pool.clone().close().map_err(told))
            .await
    }

    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Shared) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let shared = self.shared.clone();
        blocking(move || act(&shared)).await
    }
}

#[async_trait]
impl Disks for DisksDriver {
    async fn import_image(
        &self,
        image: Uuid,
        uploaded: &Path,
        format: ImageFormat,
    ) -> Result<Converted, DriverError> {
        let _turn = self.shared.conversions.acquire().await.map_err(failed)?;
        let uploaded = uploaded.to_owned();
        self.with(move |shared| {
            let converted = shared.convert(image, &uploaded, format);
            // Converted or refused: it is of no more use.
            let removed = std::fs::remove_file(&uploaded);
            let converted = converted?;
            removed.map_err(failed)?;
            Ok(converted)
        })
        .await
    }

    fn image_path(&self, image: Uuid) -> PathBuf {
        self.shared.pool.image_path(image)
    }

    async fn delete_image(&self, image: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.delete_image(image).map_err(told))
            .await
    }

    async fn create_volume(
        &self,
        volume: Uuid,
        size: u64,
        source: VolumeSource,
        lineage: Option<Uuid>,
    ) -> Result<(), DriverError> {
        let key = self.key(lineage, &format!("creation of volume {volume}")).await?;
        // The first volume of an image in a lineage has it copied, which is work, once.
        let turn = match (source, &key) {
            (VolumeSource::Image(_), Some(key)) => Some(self.turn(key.lineage)),
            _ => None,
        };
        let _alone = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        let _room = match &key {
            Some(key) if turn.is_some() && !self.shared.pool.has_sealed(key.lineage) => {
                Some(self.shared.copies.acquire().await.map_err(failed)?)
            }
            _ => None,
        };
        self.with(move |shared| {
            shared
                .pool
                .clone_volume(volume, source, size, key.as_ref())
                .map_err(told)
        })
        .await
    }

    async fn list_lineages(&self) -> Result<Vec<Uuid>, DriverError> {
        self.with(|shared| shared.pool.list_sealed().map_err(told)).await
    }

    async fn delete_lineage(&self, lineage: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.delete_sealed(lineage).map_err(told))
            .await
    }

    async fn grow_volume(&self, volume: Uuid, size: u64) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.grow_volume(volume, size).map_err(told))
            .await
    }

    async fn snapshot_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.snapshot_volume(volume, snapshot).map_err(told))
            .await
    }

    async fn revert_volume(&self, volume: Uuid, snapshot: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.revert_volume(volume, snapshot).map_err(told))
            .await
    }

    async fn delete_snapshot(&self, snapshot: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.pool.delete_snapshot(snapshot).map_err(told))
            .await
    }

    async fn back_up(&self, source: VolumeSource, backup: Uuid) -> Result<BackedUp, DriverError> {
        self.with(move |shared| {
            shared
                .backups
                .create(&shared.pool, source, backup)
                .map_err(backup_told)
        })
        .await
    }

    async fn restore_backup(&self, backup: Uuid, volume: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| {
            shared
                .backups
                .restore(&shared.pool, backup, volume)
                .map_err(backup_told)
        })
        .await
    }

    async fn list_backups(&self) -> Result<Vec<Uuid>, DriverError> {
        self.with(|shared| shared.backups.list().map_err(backup_told))
            .await
    }

    async fn delete_backup(&self, backup: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| shared.backups.delete(backup).map_err(backup_told))
            .await
    }

    async fn image_from_volume(&self, volume: Uuid, image: Uuid) -> Result<Converted, DriverError> {
        let source = VolumeSource::Volume(volume);
        let lineage = self
            .with(move |shared| shared.pool.lineage(source).map_err(told))
            .await?;
        let key = self
            .key(lineage, &format!("image {image} from volume {volume}"))
            .await?;
        let _room = match &key {
            Some(_) => Some(self.shared.copies.acquire().await.map_err(failed)?),
            None => None,
        };
        self.with(move |shared| {
            let made = shared.pool.image_from_volume(volume, image, key.as_ref());
            let (virtual_size, allocated) = made.map_err(told)?;
            Ok(Converted {
                format: ImageFormat::Raw,
                virtual_size,
                allocated,
            })
        })
        .await
    }

    async fn delete_volume(&self, volume: Uuid) -> Result<(), DriverError> {
        self.with(move |shared| {
            shared.pool.delete_volume(volume).map_err(told)?;
            shared
                .launcher
                .remove_log(&owners::disk_name(volume))
                .map_err(failed)
        })
        .await
    }

    async fn list_volumes(&self) -> Result<Vec<Uuid>, DriverError> {
        self.with(|shared| shared.pool.list_volumes().map_err(told)).await
    }

    async fn usage(&self) -> Result<PoolUsage, DriverError> {
        self.with(|shared| shared.pool.usage().map_err(told)).await
    }
}

impl Shared {
    /// Run the converter, locked in with two open files and limits of time and memory. Blocks.
    fn convert(&self, image: Uuid, uploaded: &Path, format: ImageFormat) -> Result<Converted, DriverError> {
        let source = File::open(uploaded).map_err(failed)?;
        let draft = self.pool.draft_image(image).map_err(told)?;
        let spec = ConvertSpec {
            format,
            max_virtual_size: self.max_virtual_size,
            max_seconds: MAX_SECONDS,
        };
        let name = format!("convert-{image}");
        let mut launched = self
            .launcher
            .launch(&Launch {
                kind: children::CONVERT,
                main: children::convert,
                name: name.clone(),
                spec: &spec,
                descriptors: vec![("source", source.as_fd()), ("target", draft.file().as_fd())],
                profile: Profile::Basic,
                files: Files::default(),
                limits: Limits {
                    open_files: 64,
                    processes: 32,
                    address_space: Some(2 * MEMORY),
                    cpu_seconds: Some(MAX_SECONDS),
                    file_size: Some(self.max_virtual_size),
                },
                cgroup: CgroupLimits {
                    memory: Some(MEMORY),
                    processes: Some(32),
                },
                oom_score_adj: 800,
                control: None,
                note: json!(null),
            })
            .map_err(failed)?;
        launched.connection.set_timeout(Duration::from_secs(MAX_SECONDS));
        let answer = launched.connection.recv::<Conversion>();
        // Its result is here, or it never will be.
        launched.task.kill().map_err(failed)?;
        let exit = launched
            .task
            .wait(Some(Duration::from_secs(10)))
            .map_err(failed)?;
        if self.launcher.isolation == Isolation::Process {
            self.launcher.forget(&name).map_err(failed)?;
        }
        let log = self
            .launcher
            .log_path(&name)
            .and_then(|path| std::fs::read_to_string(path).ok());
        if let Some(log) = log.filter(|log| !log.is_empty()) {
            info!(%image, log = log.chars().take(2000).collect::<String>(), "what the converter had to say");
        }
        self.launcher.remove_log(&name).map_err(failed)?;
        match answer {
            Ok((Conversion::Done(converted), _)) => {
                draft.keep().map_err(told)?;
                Ok(converted)
            }
            Ok((Conversion::BadInput(why), _)) => Err(DriverError::BadInput(why)),
            Ok((Conversion::Full(why), _)) => Err(DriverError::Full(why)),
            Ok((Conversion::Failed(why), _)) => Err(DriverError::Failed(why)),
            // A file that makes its reader die or hang is the uploader's fault.
            Err(error) => {
                let how = exit.map_or_else(|| error.to_string(), |exit| exit.to_string());
                Err(DriverError::BadInput(format!(
                    "the image's conversion was ended: {how}"
                )))
            }
        }
    }
}

fn backup_told(error: BackupError) -> DriverError {
    let text = error.to_string();
    match error {
        BackupError::Full(_) => DriverError::Full(text),
        BackupError::TooLarge { .. } => DriverError::BadInput(text),
        BackupError::Pool(error) => told(error),
        _ => DriverError::Failed(text),
    }
}

fn told(error: PoolError) -> DriverError {
    let text = error.to_string();
    match error {
        PoolError::Full(_) => DriverError::Full(text),
        PoolError::TooSmall { .. } | PoolError::Unaligned(_) => DriverError::BadInput(text),
        _ => DriverError::Failed(text),
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(act).await.map_err(failed)?
}
