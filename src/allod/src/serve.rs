//! `allod serve`: opens the state, adopts or starts the children, and serves until it is told to end.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use cloud::Cloud;
#[cfg(feature = "simulated")]
use cloud::driver::Capacity;
use cloud::driver::{DiskKeys, Drivers};
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use disk::pool::PoolOptions;
use process::child::Isolation;
use process::jail::Enforcement;
use vmm::{Accelerator, EngineKind};

use crate::config::{self, Config};
use crate::drivers::{Node, Options};
use crate::notify::notify;
use crate::state::StateDir;
use crate::tls;
use crate::web::Web;

/// Serves until SIGTERM or SIGINT. Guests and the switch stay: the next daemon adopts them.
pub fn serve(config: Config) -> Result<()> {
    let started = Instant::now();
    // Whoever started us may have blocked them for itself, and a blocked signal is inherited.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_unblock().context("cannot unblock signals")?;
    // The port first: nothing is touched when it is taken.
    let listener = bind(&config)?;
    let state = StateDir::open(&config)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run(config, state, listener, started))
}

async fn run(config: Config, state: StateDir, listener: TcpListener, started: Instant) -> Result<()> {
    let tls = tls::server_config(&config)?;
    let password = state.admin_password()?;
    let identity = Arc::new(cloud::identity::Identity::open(&state.path("secrets"))?);
    let store = store::Store::open(store::Options {
        dir: state.path("store"),
        steps: cloud::schema::STEPS,
        projections: vec![cloud::identity::projection(&identity)],
    })
    .await
    .context("the database cannot be opened")?;
    let keys = cloud::encryption::Keyring::new(store.clone(), identity.clone());
    let (drivers, _node) = drivers(&config, &state, Arc::new(keys)).await?;
    let cloud = Arc::new(Cloud {
        store,
        config: rules(&config, &state),
        drivers,
        identity,
        workers: cloud::worker::Workers::default(),
    });
    cloud::identity::bootstrap(&cloud, &password)
        .await
        .context("identity: first set-up")?;
    cloud::network::bootstrap(&cloud)
        .await
        .context("network: first set-up")?;
    cloud::image::recover(&cloud)
        .await
        .context("image: uploads that an earlier daemon left")?;
    let clouds = state.write_clouds_yaml(&config, &password)?;
    let settings = cloud::compute::Settings {
        graceful_stop: config.compute.graceful_stop(),
        ..Default::default()
    };
    let loops = [
        cloud::identity::upkeep::spawn(cloud.clone()),
        cloud::image::spawn(cloud.clone()),
        cloud::image::catalogue::spawn(cloud.clone()),
        cloud::network::spawn(cloud.clone()),
        cloud::compute::spawn_with(cloud.clone(), settings),
        cloud::volume::spawn(cloud.clone()),
        cloud::encryption::spawn(cloud.clone()),
        cloud::compute::limits::spawn(cloud.clone()),
    ];

    let shutdown = CancellationToken::new();
    let signals = end_on_signal(shutdown.clone())?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    info!(
        url = %tls::public_url(&config),
        clouds_yaml = %clouds.display(),
        engine = %cloud.drivers.machines.capacity().engine,
        milliseconds = started.elapsed().as_millis() as u64,
        "serving"
    );
    notify("READY=1");
    let served = api::serve(vec![listener], Some(tls), api::AppState::new(cloud), shutdown).await;
    notify("STOPPING=1");
    signals.abort();
    for task in loops {
        task.abort();
    }
    info!("ended; guests and the switch run on");
    served.context("the API's port")
}

/// This node's hands. The node lives as long as they are used.
async fn drivers(
    config: &Config,
    state: &StateDir,
    keys: Arc<dyn DiskKeys>,
) -> Result<(Drivers, Option<Node>)> {
    #[cfg(feature = "simulated")]
    if config.compute.engine == config::Engine::Simulated {
        let mut simulated = cloud::testing::Remembering::new(state.path("images"));
        simulated.capacity = Capacity {
            vcpus: 1 << 20,
            memory_mib: 1 << 40,
            engine: "simulated".into(),
        };
        let simulated = Arc::new(simulated);
        let drivers = Drivers {
            machines: simulated.clone(),
            disks: simulated.clone(),
            switch: simulated,
            web: Arc::new(Web::new(config)),
        };
        return Ok((drivers, None));
    }
    let _ = state;
    let node = Node::open(node_options(config), keys).await?;
    Ok((node.drivers(Arc::new(Web::new(config))), Some(node)))
}

/// What the node's drivers need of the operator's file.
pub fn node_options(config: &Config) -> Options {
    Options {
        state: config.storage.dir.clone(),
        backups: config.backups_dir(),
        pool: PoolOptions {
            path: config.pool_dir(),
            file_size: Some(loop_pool_size(config)),
            preallocate: config.storage.loop_pool_preallocate,
        },
        max_image_bytes: config.image.max_gib * model::units::GIB,
        isolation: match config.compute.isolation {
            config::Isolation::Process => Isolation::Process,
            config::Isolation::Thread => Isolation::Thread,
        },
        engine: match config.compute.engine {
            config::Engine::Auto => None,
            config::Engine::Kvm => Some(EngineKind::Kvm),
            config::Engine::Qemu => Some(EngineKind::Qemu),
            #[cfg(feature = "simulated")]
            config::Engine::Simulated => None,
        },
        accelerator: match config.compute.qemu_accel {
            config::QemuAccel::Auto => None,
            config::QemuAccel::Tcg => Some(Accelerator::Tcg),
            config::QemuAccel::Kvm => Some(Accelerator::Kvm),
        },
        qemu: config.compute.qemu.clone(),
        machines: vmm::kvm::engine::Options {
            huge_pages: config.compute.huge_pages,
            cpu: config.compute.cpu_model,
            bios: config.compute.bios.clone(),
            uefi: config.compute.uefi.clone(),
        },
        first_uid: config.compute.uid_base,
        enforcement: Enforcement::default(),
        masquerade: config.network.masquerade,
    }
}

/// The size of a loop-backed pool: the setting, or half of what is free where it will lie, in whole GiB.
fn loop_pool_size(config: &Config) -> u64 {
    let gib = config.storage.loop_pool_gib.unwrap_or_else(|| {
        let free = nix::sys::statvfs::statvfs(&config.storage.dir)
            .map_or(0, |fs| fs.blocks_available().saturating_mul(fs.fragment_size()));
        (free / 2 / model::units::GIB).max(1)
    });
    gib * model::units::GIB
}

/// What the rules need of the operator's file.
fn rules(config: &Config, state: &StateDir) -> cloud::Config {
    cloud::Config {
        region: config.server.region.clone(),
        public_url: tls::public_url(config),
        secrets_dir: state.path("secrets"),
        staging_dir: state.path("staging"),
        max_image_bytes: config.image.max_gib * model::units::GIB,
        max_project_image_bytes: config.image.project_gib * model::units::GIB,
        node: config.server.node.clone().unwrap_or_else(tls::hostname),
        availability_zone: config.server.availability_zone.clone(),
        dns_servers: config.network.dns_servers.clone(),
        ntp_servers: config.network.ntp_servers.clone(),
        external: config.network.external_cidr.map(|cidr| cloud::config::External {
            cidr,
            tap: config.network.external_tap.clone(),
        }),
        mtu: config.network.mtu,
        accounts: cloud::config::Accounts {
            unique_last_passwords: config.identity.unique_last_passwords,
            lockout_attempts: config.identity.lockout_attempts,
            lockout: std::time::Duration::from_secs(config.identity.lockout_seconds),
            managed_roles: config.identity.managed_roles.clone(),
        },
        encrypt_volumes: config.storage.encrypt,
        key_lifetime: std::time::Duration::from_secs(u64::from(config.storage.key_days) * 86_400),
        catalogue: crate::catalogue::settings(&config.image.catalogue),
    }
}

fn end_on_signal(shutdown: CancellationToken) -> Result<tokio::task::JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    }))
}

fn bind(config: &Config) -> Result<TcpListener> {
    let address = config.server.listen;
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow!(
            "server.listen: {address} is in use by another program (`ss -ltnp` shows which); end it, or set another port"
        ),
        ErrorKind::PermissionDenied => anyhow!("server.listen: {address} needs root, or a port above 1023"),
        ErrorKind::AddrNotAvailable => anyhow!("server.listen: no interface of this host has {}", address.ip()),
        _ => anyhow!("server.listen: cannot listen on {address}: {error}"),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
