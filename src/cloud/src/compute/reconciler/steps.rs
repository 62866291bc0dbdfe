//! The steps, each of which may be repeated.

use model::machine::{Machine, MachineDisk, StopMode};
use rusqlite::Connection;

use super::{NAME, Shared, Slot, lock};
use crate::compute::servers::{self, Fault, Server};
use crate::compute::state::{Power, Step, Task, VmState, Wanted};
use crate::compute::{actions, metadata, now, ports, scheduler};
use crate::driver::DriverError;
use crate::{Error, Result};

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
        Step::CreateVolume => {
            let _turn = shared.room.acquire().await;
            if superseded(shared, server).await? {
                return Ok(Flow::Replan);
            }
            drivers
                .disks
                .create_volume(server.root_volume, server.root_bytes, server.image_id.into())
                .await?;
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
        Step::DeleteVolume => drivers.disks.delete_volume(server.root_volume).await?,
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
            let settled = settle(shared, server, move |conn, row| rest(conn, row, vm, power)).await?;
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
    let (id, generation) = (server.id, server.generation);
    shared
        .cloud
        .store
        .write(NAME, move |conn| {
            let Some(mut row) = servers::get(conn, id)? else {
                return Ok(false);
            };
            if row.generation != generation || row.deleted {
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
    let capacity = shared.cloud.drivers.machines.capacity();
    let node = shared.cloud.config.node.clone();
    let zone = shared.cloud.config.availability_zone.clone();
    settle(shared, server, move |conn, row| {
        if scheduler::admits(conn, &node, &capacity, row)? {
            row.host = Some(node.clone());
            row.zone = Some(zone.clone());
            row.task_state = Some(Task::Spawning);
            ports::bind(conn, row, &node)
        } else {
            set_error(conn, row, 500, scheduler::NO_VALID_HOST, None)
        }
    })
    .await?;
    Ok(Flow::Replan)
}

/// What the node is to start.
async fn machine(shared: &Shared, server: &Server) -> Result<Machine> {
    let row = server.clone();
    let (interfaces, config_drive) = shared
        .cloud
        .store
        .read(move |conn| {
            Ok::<_, Error>((
                ports::of_server(conn, row.id)?,
                metadata::config_drive(conn, &row)?,
            ))
        })
        .await?;
    Ok(Machine {
        id: server.id,
        name: server.name.clone(),
        vcpus: server.flavor.vcpus,
        memory_mib: server.flavor.ram,
        disks: vec![MachineDisk {
            volume: server.root_volume,
            size: server.root_bytes,
            read_only: false,
        }],
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

fn rest(conn: &Connection, row: &mut Server, vm: VmState, power: Power) -> Result<()> {
    row.vm_state = vm;
    row.power_state = power;
    row.task_state = None;
    row.fault = None;
    row.observed_generation = row.generation;
    match vm {
        VmState::Active => {
            row.launched_at = row.launched_at.or(Some(now()));
            row.wanted = Wanted::Active;
        }
        VmState::Paused => row.wanted = Wanted::Paused,
        VmState::Stopped => row.wanted = Wanted::Stopped,
        VmState::Building | VmState::Error | VmState::Deleted => {}
    }
    actions::finish(conn, row, Ok(()))
}

/// The row becomes history, and what other rooms hold for the server is released, in one write.
fn bury(conn: &Connection, row: &mut Server) -> Result<()> {
    ports::release_for_server(conn, row.id)?;
    conn.prepare_cached("DELETE FROM compute_user_data WHERE server_id = ?1")?
        .execute([row.id.to_string()])?;
    row.deleted = true;
    row.vm_state = VmState::Deleted;
    row.power_state = Power::NoState;
    row.task_state = None;
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
    row.observed_generation = row.generation;
    row.fault = Some(Fault {
        code,
        created: now(),
        message: message.to_owned(),
        details: details.map(str::to_owned),
    });
    actions::finish(conn, row, Err(message))
}

/// The server is in `ERROR`, and its fault says why.
pub(super) async fn fail(shared: &Shared, server: &Server, error: &DriverError) -> Result<()> {
    let (code, message, details) = match error {
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
    };
    settle(shared, server, move |conn, row| {
        set_error(conn, row, code, &message, details.as_deref())
    })
    .await?;
    Ok(())
}
