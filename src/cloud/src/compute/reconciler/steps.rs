//! The steps, each of which may be repeated.

use model::disk::VolumeSource;
use model::machine::{Machine, MachineDisk, StopMode};
use rusqlite::Connection;
use tokio::sync::broadcast::error::RecvError;
use uuid::Uuid;

use super::{NAME, Shared, Slot, lock};
use crate::compute::attach;
use crate::compute::disks::{self, Disk, DiskState};
use crate::compute::servers::{self, Fault, Server};
use crate::compute::state::{Power, Step, Task, VmState, Wanted};
use crate::compute::volumes::{self, Ready};
use crate::compute::{actions, aggregates, limits, metadata, migrations, now, ports, scheduler};
use crate::driver::DriverError;
use crate::encryption;
use crate::{Error, Result};

/// Why a server is not shelved.
const NO_IMAGE: &str = "The image that the server was to be kept as was deleted.";

/// What comes after a step.
pub(super) enum Flow {
    /// The plan's next step.
    Next,
    /// Another plan: something else is wanted by now, or the row says more.
    Replan,
}

/// Why a step failed.
pub(super) enum Failure {
    /// The node could not do it.
    Driver(DriverError),
    /// It could not be written down: it is tried again.
    Store(Error),
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Failure::Driver(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

pub(super) async fn perform(
    shared: &Shared,
    server: &Server,
    step: Step,
    slot: &Slot,
) -> Result<Flow, Failure> {
    let drivers = &shared.cloud.drivers;
    let id = server.id;
    match step {
        Step::Place => return Ok(place(shared, server).await?),
        Step::CreateDisks => {
            if !volumes_ready(shared, server, slot).await? {
                return Ok(Flow::Replan);
            }
            let _turn = shared.room.acquire().await;
            if superseded(shared, server).await? {
                return Ok(Flow::Replan);
            }
            create_disks(shared, server).await?;
        }
        Step::PrepareRoot => {
            let _turn = shared.room.acquire().await;
            if superseded(shared, server).await? {
                return Ok(Flow::Replan);
            }
            prepare_root(shared, server).await?;
        }
        Step::Swap(task) => {
            let phase = server.exchange.as_ref().map(|e| e.phase);
            settle(shared, server, move |conn, row| {
                // Twice would be back.
                if row.exchange.as_ref().map(|e| e.phase) == phase {
                    if let Some(image) = row.exchange.as_ref().and_then(|e| e.reimage) {
                        volumes::reimaged(conn, row.root_volume, image)?;
                    }
                    row.exchange();
                }
                row.task_state = Some(task);
                row.power_state = Power::Shutdown;
                Ok(())
            })
            .await?;
            return Ok(Flow::Replan);
        }
        Step::DropOther => {
            if let Some((volume, _)) = server.exchange.as_ref().and_then(|e| e.root) {
                encryption::delete_volume(&shared.cloud, volume).await?;
            }
        }
        Step::CreateRescue => {
            let _turn = shared.room.acquire().await;
            if let Some(rescue) = &server.rescue {
                // One that an earlier try left may be of another image.
                encryption::delete_volume(&shared.cloud, rescue.volume).await?;
                let image = VolumeSource::Image(rescue.image);
                create(shared, server, rescue.volume, rescue.bytes, image).await?;
            }
        }
        Step::DropRescue => {
            if let Some(rescue) = &server.rescue {
                encryption::delete_volume(&shared.cloud, rescue.volume).await?;
                settle(shared, server, |_, row| {
                    row.rescue = None;
                    Ok(())
                })
                .await?;
            }
        }
        Step::Snapshot => {
            let _turn = shared.room.acquire().await;
            snapshot(shared, server).await?;
            if server.task_state == Some(Task::Shelving)
                && !server.volume_backed
                && !kept(shared, server).await?
            {
                // Without an image the disk is all there is of the server.
                stay(shared, server).await?;
                return Ok(Flow::Replan);
            }
        }
        Step::DropShelved => {
            if let Some(image) = server.shelved_image {
                settle(shared, server, move |conn, row| {
                    row.shelved_image = None;
                    crate::image::snapshots::discard(conn, image)
                })
                .await?;
            }
        }
        Step::Offload => {
            settle(shared, server, |conn, row| offload(conn, row, Ok(()))).await?;
            return Ok(Flow::Replan);
        }
        Step::Done => {
            settle(shared, server, |conn, row| {
                row.task_state = None;
                row.snapshot = None;
                row.observed_generation = row.generation;
                actions::finish(conn, row, Ok(()))
            })
            .await?;
            return Ok(Flow::Replan);
        }
        Step::Start => {
            let _turn = shared.room.acquire().await;
            if superseded(shared, server).await? {
                return Ok(Flow::Replan);
            }
            let machine = machine(shared, server).await?;
            if let (false, Err(error)) = (
                machine.nics.is_empty(),
                ports::wait(&shared.cloud, id, shared.settings.wait_for_ports).await,
            ) {
                // The guest asks for its address again and again; better late than not at all.
                tracing::warn!(server = %id, %error, "started before its ports are ready");
            }
            drivers.machines.start(&machine).await?;
        }
        Step::Stop(StopMode::Hard) => drivers.machines.stop(id, StopMode::Hard).await?,
        Step::Stop(mode) => stop_unless_superseded(shared, server, mode, slot).await?,
        Step::Pause => drivers.machines.pause(id).await?,
        Step::Resume => drivers.machines.resume(id).await?,
        Step::Forget => drivers.machines.forget(id).await?,
        Step::DeleteDisks => delete_disks(shared, server).await?,
        Step::Proceed(task) => {
            settle(shared, server, move |_, row| {
                row.task_state = Some(task);
                row.power_state = Power::Shutdown;
                Ok(())
            })
            .await?;
            return Ok(Flow::Replan);
        }
        Step::Settle(vm, power) => {
            let settled = settle(shared, server, move |conn, row| {
                rest(conn, row, vm, power, Ok(()))
            })
            .await?;
            if settled {
                lock(&shared.rest).insert(id, server.generation);
            }
            return Ok(Flow::Replan);
        }
        Step::Bury => {
            settle(shared, server, bury).await?;
            return Ok(Flow::Replan);
        }
    }
    Ok(Flow::Next)
}

/// Changes the row, unless something newer is wanted of the server by now; tells whether it did.
async fn settle<F>(shared: &Shared, server: &Server, change: F) -> Result<bool>
where
    F: Fn(&Connection, &mut Server) -> Result<()> + Send + 'static,
{
    let (id, generation, task) = (server.id, server.generation, server.task_state);
    shared
        .cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut row) = servers::get(conn, id)? else {
                return Ok(false);
            };
            if row.generation != generation || row.task_state != task || row.deleted {
                return Ok(false);
            }
            row.updated_at = now();
            change(conn, &mut row)?;
            row.save(conn)?;
            Ok(true)
        })
        .await
}

/// Something newer is wanted of the server.
async fn superseded(shared: &Shared, server: &Server) -> Result<bool> {
    let id = server.id;
    let row = shared
        .cloud
        .store
        .read(move |conn| servers::get(conn, id))
        .await?;
    Ok(row.is_none_or(|row| row.generation != server.generation))
}

async fn place(shared: &Shared, server: &Server) -> Result<Flow> {
    let node = shared.cloud.config.node.clone();
    let zone = shared.cloud.config.availability_zone.clone();
    settle(shared, server, move |conn, row| {
        if scheduler::place(conn, &node, row)? {
            row.host = Some(node.clone());
            row.zone = Some(aggregates::zone_of(conn, &node, &zone)?);
            if row.task_state == Some(Task::Scheduling) {
                row.task_state = Some(Task::Spawning);
            }
            ports::bind(conn, row, &node)
        } else if row.task_state == Some(Task::Unshelving) {
            // It stays on its shelf.
            row.task_state = None;
            row.wanted = Wanted::Stopped;
            row.observed_generation = row.generation;
            actions::finish(conn, row, Err(scheduler::NO_VALID_HOST))
        } else {
            set_error(conn, row, 500, scheduler::NO_VALID_HOST, None)
        }
    })
    .await?;
    Ok(Flow::Replan)
}

/// Waits until all volumes of the server have their bytes; `false`: something newer is wanted of the server.
async fn volumes_ready(shared: &Shared, server: &Server, slot: &Slot) -> Result<bool, Failure> {
    let id = server.id;
    let mut events = shared.cloud.store.subscribe();
    loop {
        let ready = shared
            .cloud
            .store
            .read(move |conn| volumes::ready(conn, id))
            .await?;
        match ready {
            Ready::Yes => return Ok(true),
            Ready::Never(volume) => {
                return Err(Failure::Driver(DriverError::BadInput(format!(
                    "Build of instance {id} aborted: Volume {volume} did not finish being created."
                ))));
            }
            Ready::NotYet => {}
        }
        tokio::select! {
            event = events.recv() => if matches!(event, Err(RecvError::Closed)) {
                return Ok(false);
            },
            () = slot.wake.notified() => {}
        }
        if superseded(shared, server).await? {
            return Ok(false);
        }
    }
}

/// The server's disks that are not its root.
async fn disks_of(shared: &Shared, server: &Server) -> Result<Vec<Disk>> {
    let id = server.id;
    shared
        .cloud
        .store
        .read(move |conn| disks::of_server(conn, id))
        .await
}

/// Makes a disk of the server's.
async fn create(
    shared: &Shared,
    server: &Server,
    volume: Uuid,
    bytes: u64,
    source: VolumeSource,
) -> Result<(), DriverError> {
    encryption::create_volume(&shared.cloud, &server.project_id, volume, bytes, source).await
}

async fn create_disks(shared: &Shared, server: &Server) -> Result<(), Failure> {
    if !server.volume_backed {
        let image = server.shelved_image.or(server.image_id);
        create(
            shared,
            server,
            server.root_volume,
            server.root_bytes,
            image.into(),
        )
        .await?;
    }
    for disk in disks_of(shared, server).await?.iter().filter(|d| d.local) {
        create(shared, server, disk.volume, disk.size, VolumeSource::Empty).await?;
    }
    Ok(())
}

/// Makes the root volume that the server's is to be exchanged for: a larger copy of it, or a new one of its image.
async fn prepare_root(shared: &Shared, server: &Server) -> Result<(), Failure> {
    let Some(exchange) = &server.exchange else {
        return Ok(());
    };
    if let Some(image) = exchange.reimage {
        // The volume may have grown since the server was made.
        let id = server.id;
        let volumes = shared
            .cloud
            .store
            .read(move |conn| volumes::machine_disks(conn, id))
            .await?;
        let root = volumes.iter().find(|disk| disk.volume == server.root_volume);
        let bytes = root.map_or(server.root_bytes, |disk| disk.size);
        encryption::delete_volume(&shared.cloud, server.root_volume).await?;
        create(
            shared,
            server,
            server.root_volume,
            bytes,
            VolumeSource::Image(image),
        )
        .await?;
    }
    if let Some((volume, bytes)) = exchange.root {
        let source = if server.task_state == Some(Task::Rebuilding) {
            server.image_id.into()
        } else {
            VolumeSource::Volume(server.root_volume)
        };
        // One that a killed daemon left is older than what the guest wrote since.
        encryption::delete_volume(&shared.cloud, volume).await?;
        create(shared, server, volume, bytes, source).await?;
    }
    Ok(())
}

async fn delete_disks(shared: &Shared, server: &Server) -> Result<(), Failure> {
    if !server.volume_backed {
        encryption::delete_volume(&shared.cloud, server.root_volume).await?;
    }
    let other = server.exchange.as_ref().and_then(|e| e.root);
    let rescue = server.rescue.as_ref().map(|r| r.volume);
    for volume in other.map(|(volume, _)| volume).into_iter().chain(rescue) {
        encryption::delete_volume(&shared.cloud, volume).await?;
    }
    for disk in disks_of(shared, server).await?.iter().filter(|d| d.local) {
        encryption::delete_volume(&shared.cloud, disk.volume).await?;
    }
    Ok(())
}

/// Makes an image of the root volume, unless someone has deleted the image meanwhile.
async fn snapshot(shared: &Shared, server: &Server) -> Result<(), Failure> {
    let image = if server.task_state == Some(Task::Shelving) {
        server.shelved_image
    } else {
        server.snapshot
    };
    let Some(image) = image else { return Ok(()) };
    let awaited = shared
        .cloud
        .store
        .read(move |conn| crate::image::snapshots::is_awaited(conn, image))
        .await?;
    if awaited {
        let pool = &shared.cloud.drivers.disks;
        let converted = pool.image_from_volume(server.root_volume, image).await?;
        crate::image::snapshots::finish(&shared.cloud, image, &converted).await?;
    } else {
        crate::image::snapshots::clear(&shared.cloud, image).await?;
    }
    Ok(())
}

/// There is an image that a server can come back from.
async fn kept(shared: &Shared, server: &Server) -> Result<bool> {
    let Some(image) = server.shelved_image else {
        return Ok(false);
    };
    let read = move |conn: &_| crate::image::snapshots::is_there(conn, image);
    shared.cloud.store.read(read).await
}

/// No node has the server, nor its disks.
fn offload(conn: &Connection, row: &mut Server, result: Result<(), &str>) -> Result<()> {
    row.rescue = None;
    rest(conn, row, VmState::ShelvedOffloaded, Power::Shutdown, result)?;
    scheduler::release(conn, row)?;
    ports::unbind(conn, row)?;
    row.host = None;
    row.zone = None;
    Ok(())
}

/// A server that could not come back leaves the node again, if there still is what it was kept as; tells whether it did.
pub(super) async fn back_to_shelf(shared: &Shared, server: &Server, error: &DriverError) -> Result<bool> {
    if !server.volume_backed && !kept(shared, server).await? {
        return Ok(false);
    }
    if superseded(shared, server).await? {
        return Ok(true);
    }
    let machines = &shared.cloud.drivers.machines;
    let left = async {
        machines.stop(server.id, StopMode::Hard).await?;
        machines.forget(server.id).await?;
        delete_disks(shared, server).await
    };
    match left.await {
        Ok(()) => {}
        Err(Failure::Store(error)) => return Err(error),
        Err(Failure::Driver(error)) => return Err(Error::Internal(error.to_string())),
    }
    let (_, message, _) = told(error);
    settle(shared, server, move |conn, row| offload(conn, row, Err(&message))).await?;
    Ok(true)
}

/// The server is not shelved, since its image was deleted meanwhile: it is off, with its disk.
async fn stay(shared: &Shared, server: &Server) -> Result<()> {
    settle(shared, server, |conn, row| {
        row.shelved_image = None;
        rest(conn, row, VmState::Stopped, Power::Shutdown, Err(NO_IMAGE))
    })
    .await?;
    Ok(())
}

/// What the node is to start.
async fn machine(shared: &Shared, server: &Server) -> Result<Machine> {
    let row = server.clone();
    let (interfaces, config_drive, disks, volumes) = shared
        .cloud
        .store
        .read(move |conn| {
            Ok::<_, Error>((
                ports::of_server(conn, row.id)?,
                metadata::config_drive(conn, &row)?,
                disks::of_server(conn, row.id)?,
                volumes::machine_disks(conn, row.id)?,
            ))
        })
        .await?;
    let local = |volume, size| MachineDisk {
        volume,
        size,
        read_only: false,
        limits: limits::of_flavor(server),
    };
    let mut all = Vec::new();
    // In every other state and task, one that is still there was left by something that failed.
    let rescued = server.vm_state == VmState::Rescued && server.task_state.is_none();
    let mut boot = &server.boot;
    if let Some(rescue) = &server.rescue
        && (rescued || server.task_state == Some(Task::Rescuing))
    {
        boot = &rescue.boot;
        all.push(local(rescue.volume, rescue.bytes));
    }
    if !server.volume_backed {
        all.push(local(server.root_volume, server.root_bytes));
    }
    for disk in disks.iter().filter(|d| d.state != DiskState::Detaching) {
        if disk.local {
            all.push(local(disk.volume, disk.size));
        } else if let Some(volume) = volumes.iter().find(|v| v.volume == disk.volume) {
            all.push(volume.clone());
        }
    }
    Ok(Machine {
        id: server.id,
        name: server.name.clone(),
        vcpus: server.flavor.vcpus,
        memory_mib: server.flavor.ram,
        boot: boot.clone(),
        disks: all,
        nics: interfaces.iter().map(ports::Interface::nic).collect(),
        config_drive,
    })
}

/// Lets the guest shut down; pulls the plug as soon as something newer is wanted (deletion, a hard reboot).
async fn stop_unless_superseded(
    shared: &Shared,
    server: &Server,
    mode: StopMode,
    slot: &Slot,
) -> Result<(), Failure> {
    let machines = &shared.cloud.drivers.machines;
    let mut stop = machines.stop(server.id, mode);
    loop {
        tokio::select! {
            done = &mut stop => return Ok(done?),
            () = slot.wake.notified() => {
                if superseded(shared, server).await? {
                    machines.stop(server.id, StopMode::Hard).await?;
                    return Ok(());
                }
            }
        }
    }
}

fn rest(
    conn: &Connection,
    row: &mut Server,
    vm: VmState,
    power: Power,
    result: Result<(), &str>,
) -> Result<()> {
    match row.task_state {
        Some(Task::ResizeFinish) => migrations::advance(conn, row, "finished")?,
        Some(Task::ResizeConfirming) => migrations::advance(conn, row, "confirmed")?,
        Some(Task::ResizeReverting) => migrations::advance(conn, row, "reverted")?,
        _ => {}
    }
    row.vm_state = vm;
    row.power_state = power;
    row.task_state = None;
    row.fault = None;
    row.snapshot = None;
    row.observed_generation = row.generation;
    let running = matches!(power, Power::Running | Power::Paused);
    match vm {
        VmState::Active => {
            row.launched_at = row.launched_at.or(Some(now()));
            row.wanted = Wanted::Active;
        }
        VmState::Paused => row.wanted = Wanted::Paused,
        VmState::Stopped | VmState::ShelvedOffloaded => row.wanted = Wanted::Stopped,
        VmState::Resized | VmState::Rescued => {
            row.wanted = if running { Wanted::Active } else { Wanted::Stopped };
        }
        VmState::Building | VmState::Error | VmState::Deleted => {}
    }
    if vm != VmState::Resized {
        row.exchange = None;
    }
    // It needs no more than what it is now; giving back is never refused.
    scheduler::reclaim(conn, row)?;
    if running && row.host.is_some() {
        let host = row.host.clone().unwrap_or_default();
        for mut disk in disks::of_server(conn, row.id)? {
            if disk.state == DiskState::Attaching && disk.request_id.is_none() {
                if let Some(attachment) = disk.attachment {
                    volumes::attached(conn, attachment, &disk.device, &host)?;
                }
                disk.state = DiskState::Attached;
                disk.save(conn)?;
            }
        }
    }
    actions::finish(conn, row, result)
}

/// The row becomes history, and what other rooms hold for the server is released, in one write.
fn bury(conn: &Connection, row: &mut Server) -> Result<()> {
    ports::release_for_server(conn, row.id)?;
    for disk in disks::of_server(conn, row.id)?.iter().filter(|d| !d.local) {
        disk.remove(conn)?;
        if disk.delete_on_termination {
            volumes::delete_with_server(conn, disk.volume, row)?;
        } else {
            volumes::detached(conn, disk.volume, row.id)?;
        }
    }
    attach::forget(conn, row.id)?;
    scheduler::release(conn, row)?;
    for image in [row.snapshot, row.shelved_image].into_iter().flatten() {
        crate::image::snapshots::give_up(conn, image)?;
    }
    if let Some(image) = row.shelved_image {
        crate::image::snapshots::discard(conn, image)?;
    }
    conn.prepare_cached("DELETE FROM compute_user_data WHERE server_id = ?1")?
        .execute([row.id.to_string()])?;
    migrations::advance(conn, row, "confirmed")?;
    row.deleted = true;
    row.vm_state = VmState::Deleted;
    row.power_state = Power::NoState;
    row.task_state = None;
    row.exchange = None;
    row.rescue = None;
    row.snapshot = None;
    row.shelved_image = None;
    row.terminated_at = Some(now());
    row.observed_generation = row.generation;
    actions::finish(conn, row, Ok(()))
}

fn set_error(
    conn: &Connection,
    row: &mut Server,
    code: u16,
    message: &str,
    details: Option<&str>,
) -> Result<()> {
    row.vm_state = VmState::Error;
    row.task_state = None;
    migrations::advance(conn, row, "error")?;
    row.observed_generation = row.generation;
    if let Some(image) = row.snapshot.take() {
        crate::image::snapshots::give_up(conn, image)?;
    }
    if let Some(image) = row.shelved_image
        && !crate::image::snapshots::is_there(conn, image)?
    {
        crate::image::snapshots::give_up(conn, image)?;
        row.shelved_image = None;
    }
    row.fault = Some(Fault {
        code,
        created: now(),
        message: message.to_owned(),
        details: details.map(str::to_owned),
    });
    actions::finish(conn, row, Err(message))
}

/// What a tenant is told of an error, its code first, and what only admins are.
fn told(error: &DriverError) -> (u16, String, Option<String>) {
    match error {
        DriverError::BadInput(text) => (400, text.clone(), None),
        DriverError::Full(text) => (
            500,
            "The host has no space left for the server's disk.".to_owned(),
            Some(text.clone()),
        ),
        DriverError::Failed(text) => (
            500,
            "The server could not be brought to the wanted state on its host.".to_owned(),
            Some(text.clone()),
        ),
    }
}

/// The server is in `ERROR`, and its fault says why.
pub(super) async fn fail(shared: &Shared, server: &Server, error: &DriverError) -> Result<()> {
    let (code, message, details) = told(error);
    settle(shared, server, move |conn, row| {
        set_error(conn, row, code, &message, details.as_deref())
    })
    .await?;
    Ok(())
}

/// No image came of it; the server is none the worse.
pub(super) async fn fail_snapshot(shared: &Shared, server: &Server, error: &DriverError) -> Result<()> {
    let text = error.to_string();
    settle(shared, server, move |conn, row| {
        row.task_state = None;
        row.observed_generation = row.generation;
        if let Some(image) = row.snapshot.take() {
            crate::image::snapshots::give_up(conn, image)?;
        }
        actions::finish(conn, row, Err(&text))
    })
    .await?;
    Ok(())
}
