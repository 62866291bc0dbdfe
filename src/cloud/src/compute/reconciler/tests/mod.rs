//! The loop against drivers that remember, fail and hang.

mod boot;
mod changes;
mod limits;
mod plugs;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::disk::DiskLimits;
use model::machine::{Machine, MachineDisk, MachineEvent, MachineNic, PowerState, StopMode};
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::*;
use crate::compute::actions::{Action, act};
use crate::compute::groups::{self, Policy};
use crate::compute::servers::{self, Server, sample};
use crate::compute::state::{Power, Step, VmState, Wanted, plan};
use crate::driver::{Capacity, DriverError, Drivers, Machines};
use crate::testing::{self, TestCloud};
use crate::{Context, Error};

fn settings() -> Settings {
    Settings {
        graceful_stop: Duration::from_secs(60),
        parallel: 4,
        wait_for_ports: Duration::ZERO,
        confirm_resize_after: None,
        retry: Duration::from_millis(1),
    }
}

struct World {
    test: TestCloud,
    admin: Context,
    worker: Option<JoinHandle<()>>,
}

impl World {
    async fn new() -> World {
        let test = testing::cloud().await;
        crate::compute::register(&test.cloud).await.unwrap();
        // The samples' project, which has keys.
        let project = test.cloud.store.write("test", |conn| {
            conn.execute(
                "INSERT INTO projects (id, domain_id, name, description, enabled, tags, extra)
                 VALUES ('p', 'default', 'p', '', 1, '[]', '{}')",
                [],
            )?;
            Ok::<_, Error>(())
        });
        project.await.unwrap();
        World {
            test,
            admin: Context::system(),
            worker: None,
        }
    }

    fn start(&mut self) {
        self.worker = Some(spawn_with(self.test.cloud.clone(), settings()));
    }

    /// The daemon dies; what is under way is gone.
    async fn kill(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.abort();
            let _ = worker.await;
        }
    }

    async fn insert(&self, server: Server) -> Uuid {
        let id = server.id;
        let row = server.clone();
        self.test
            .cloud
            .store
            .write("test", move |conn| row.save(conn))
            .await
            .unwrap();
        id
    }

    async fn get(&self, id: Uuid) -> Server {
        self.test
            .cloud
            .store
            .read(move |conn| servers::get(conn, id))
            .await
            .unwrap()
            .unwrap()
    }

    /// Waits on the store's events until the server is so.
    async fn until(&self, id: Uuid, what: impl Fn(&Server) -> bool) -> Server {
        let mut events = self.test.cloud.store.subscribe();
        let wait = async {
            loop {
                let server = self.get(id).await;
                if what(&server) {
                    return server;
                }
                events.recv().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(20), wait).await {
            Ok(server) => server,
            Err(_) => panic!("still {:?}", self.get(id).await),
        }
    }

    async fn rests(&self, id: Uuid, vm: VmState) -> Server {
        self.until(id, |s| s.vm_state == vm && s.task_state.is_none())
            .await
    }

    async fn act(&self, id: Uuid, action: Action) {
        let ctx = Context {
            request_id: format!("req-{}", Uuid::new_v4()),
            ..self.admin.clone()
        };
        act(&self.test.cloud, &ctx, &id.to_string(), action)
            .await
            .unwrap();
    }

    /// A server that runs.
    async fn active(&self) -> Uuid {
        let id = self.insert(sample("vm")).await;
        self.rests(id, VmState::Active).await;
        id
    }

    fn calls(&self) -> Vec<String> {
        let mut state = self.test.drivers.state();
        state
            .calls
            .drain(..)
            .map(|c| c.split(' ').next().unwrap().to_owned())
            .filter(|c| c != "apply" && c != "delete_lineage")
            .collect()
    }

    fn machine(&self, id: Uuid) -> Option<PowerState> {
        self.test
            .drivers
            .state()
            .machines
            .get(&id)
            .map(|(_, power)| *power)
    }

    fn shared(&self) -> Shared {
        Shared {
            room: Semaphore::new(4),
            settings: settings(),
            slots: Mutex::default(),
            rest: Mutex::default(),
            seen: Mutex::default(),
            told: Mutex::default(),
            cloud: self.test.cloud.clone(),
        }
    }
}

#[tokio::test]
async fn a_servers_life() {
    let mut world = World::new().await;
    world.start();
    let id = world.active().await;
    assert_eq!(world.calls(), ["create_volume", "start"]);
    let server = world.get(id).await;
    assert_eq!(
        (server.host.as_deref(), server.zone.as_deref()),
        (Some("node1"), Some("nova"))
    );
    assert!(server.launched_at.is_some() && server.generation == server.observed_generation);

    for (action, vm, calls, machine) in [
        (
            Action::Pause,
            VmState::Paused,
            vec!["pause"],
            Some(PowerState::Paused),
        ),
        (
            Action::Unpause,
            VmState::Active,
            vec!["resume"],
            Some(PowerState::Running),
        ),
        (
            Action::Reboot { hard: false },
            VmState::Active,
            vec!["stop", "start"],
            Some(PowerState::Running),
        ),
        (Action::Stop, VmState::Stopped, vec!["stop"], None),
        (
            Action::Start,
            VmState::Active,
            vec!["start"],
            Some(PowerState::Running),
        ),
        (
            Action::Reboot { hard: true },
            VmState::Active,
            vec!["stop", "start"],
            Some(PowerState::Running),
        ),
    ] {
        world.act(id, action.clone()).await;
        let server = world.rests(id, vm).await;
        assert_eq!(world.calls(), calls, "{action:?}");
        assert_eq!(world.machine(id), machine, "{action:?}");
        assert_eq!(server.generation, server.observed_generation);
    }
    world.act(id, Action::Delete).await;
    let server = world.until(id, |s| s.deleted).await;
    assert_eq!((server.status(), server.vm_state), ("DELETED", VmState::Deleted));
    assert_eq!(world.calls(), ["stop", "forget", "delete_volume"]);
    assert!(world.test.drivers.state().volumes.is_empty());
    let history = crate::compute::actions::history(
        &world.test.cloud,
        &world.admin,
        &id.to_string(),
        true,
        crate::compute::actions::Page {
            limit: 100,
            ..Default::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(history.len(), 7);
    assert!(
        history
            .iter()
            .all(|e| e.result.as_deref() == Some("Success") && e.finished_at.is_some())
    );
}

/// What leads from a server at rest to the plan under test.
fn cases() -> Vec<(VmState, Option<Action>)> {
    vec![
        (VmState::Building, None),
        (VmState::Stopped, Some(Action::Start)),
        (VmState::Active, Some(Action::Stop)),
        (VmState::Active, Some(Action::Reboot { hard: false })),
        (VmState::Active, Some(Action::Reboot { hard: true })),
        (VmState::Active, Some(Action::Pause)),
        (VmState::Paused, Some(Action::Unpause)),
        (VmState::Active, Some(Action::Delete)),
    ]
}

/// A server in this state, whose reconciler has been killed before it saw the action.
async fn prepared(vm: VmState, action: Option<Action>) -> (World, Uuid) {
    let mut world = World::new().await;
    let Some(action) = action else {
        let id = world.insert(sample("vm")).await;
        return (world, id);
    };
    world.start();
    let id = world.active().await;
    if vm == VmState::Paused {
        world.act(id, Action::Pause).await;
    }
    if vm == VmState::Stopped {
        world.act(id, Action::Stop).await;
    }
    world.rests(id, vm).await;
    world.kill().await;
    world.act(id, action).await;
    (world, id)
}

/// After it the row is another one.
fn ends_a_plan(step: Step) -> bool {
    matches!(
        step,
        Step::Place
            | Step::Proceed(_)
            | Step::Swap(_)
            | Step::Settle(..)
            | Step::Done
            | Step::Offload
            | Step::Bury
    )
}

/// Where an action leads.
fn ended(server: &Server, action: &Option<Action>) -> bool {
    match action {
        Some(Action::Delete) => server.deleted,
        Some(Action::Stop) => server.vm_state == VmState::Stopped && server.task_state.is_none(),
        Some(Action::Pause) => server.vm_state == VmState::Paused && server.task_state.is_none(),
        _ => server.vm_state == VmState::Active && server.task_state.is_none(),
    }
}

#[tokio::test]
async fn every_step_may_be_repeated_and_the_daemon_may_die_after_each() {
    for (vm, action) in cases() {
        // After this many steps the daemon dies; each step before was done twice.
        for survive in 0..8 {
            let (mut world, id) = prepared(vm, action.clone()).await;
            let shared = world.shared();
            let slot = Slot::default();
            let mut done = 0;
            'steps: while done < survive {
                let server = world.get(id).await;
                if ended(&server, &action) {
                    break;
                }
                let machine = world.machine(id);
                for step in plan(server.state(), machine, Duration::from_secs(60)) {
                    if done == survive {
                        break 'steps;
                    }
                    done += 1;
                    for _ in 0..2 {
                        assert!(
                            steps::perform(&shared, &server, step, &slot).await.is_ok(),
                            "{step:?}"
                        );
                    }
                    if ends_a_plan(step) {
                        break;
                    }
                }
            }
            world.start();
            let server = world.until(id, |s| ended(s, &action)).await;
            assert!(server.fault.is_none(), "{action:?} after {survive}");
            let running = matches!(server.vm_state, VmState::Active | VmState::Paused);
            assert_eq!(world.machine(id).is_some(), running, "{action:?} after {survive}");
            assert_eq!(
                world.test.drivers.state().volumes.len(),
                usize::from(!server.deleted)
            );
            world.kill().await;
        }
    }
}

#[tokio::test]
async fn a_failure_at_any_step_is_a_fault_that_a_hard_reboot_repairs() {
    for (vm, action) in cases() {
        let calls: &[&'static str] = match &action {
            None => &["create_volume", "start"],
            Some(Action::Start) => &["start"],
            Some(Action::Stop) => &["stop"],
            Some(Action::Reboot { .. }) => &["stop", "start"],
            Some(Action::Pause) => &["pause"],
            Some(Action::Unpause) => &["resume"],
            _ => &["stop", "forget", "delete_volume"],
        };
        for call in calls {
            let (mut world, id) = prepared(vm, action.clone()).await;
            world
                .test
                .drivers
                .fail_next(call, DriverError::Failed("the node's secret".into()));
            world.start();
            if action == Some(Action::Delete) {
                // Deletion is tried until it is done.
                world.until(id, |s| s.deleted).await;
                assert!(world.test.drivers.state().volumes.is_empty());
                continue;
            }
            let server = world.rests(id, VmState::Error).await;
            let fault = server.fault.unwrap();
            assert_eq!(fault.code, 500, "{action:?} {call}");
            assert!(!fault.message.contains("secret"), "{}", fault.message);
            assert_eq!(fault.details.as_deref(), Some("the node's secret"));
            world.act(id, Action::Reboot { hard: true }).await;
            let server = world.rests(id, VmState::Active).await;
            assert!(server.fault.is_none());
            assert_eq!(world.machine(id), Some(PowerState::Running), "{action:?} {call}");
            world.act(id, Action::Delete).await;
            world.until(id, |s| s.deleted).await;
            world.kill().await;
        }
    }
}

#[tokio::test]
async fn the_tenants_own_fault_is_told_to_the_tenant() {
    let mut world = World::new().await;
    world.test.drivers.fail_next(
        "create_volume",
        DriverError::BadInput("the image is no disk".into()),
    );
    world.start();
    let id = world.insert(sample("vm")).await;
    let fault = world.rests(id, VmState::Error).await.fault.unwrap();
    assert_eq!(
        (fault.code, fault.message.as_str()),
        (400, "the image is no disk")
    );
}

#[tokio::test]
async fn what_guests_do_by_themselves_is_seen() {
    let mut world = World::new().await;
    world.start();
    for (event, power, process) in [
        (PowerState::Shutdown, Power::Shutdown, true),
        (PowerState::Crashed, Power::Crashed, true),
        (PowerState::Shutdown, Power::Shutdown, false),
        (PowerState::Crashed, Power::Crashed, false),
    ] {
        let id = world.active().await;
        if !process {
            world.test.drivers.state().machines.remove(&id);
        }
        world.test.drivers.happen(id, event);
        let server = world.rests(id, VmState::Stopped).await;
        assert_eq!(
            (server.status(), server.power_state, server.wanted),
            ("SHUTOFF", power, Wanted::Stopped)
        );
        world.act(id, Action::Start).await;
        assert_eq!(world.rests(id, VmState::Active).await.power_state, Power::Running);
    }
}

#[tokio::test]
async fn a_new_daemon_adopts_what_runs_and_repairs_the_rest() {
    let mut world = World::new().await;
    world.start();
    let (runs, lost, off, ended) = (
        world.active().await,
        world.active().await,
        world.active().await,
        world.active().await,
    );
    world.act(off, Action::Stop).await;
    world.rests(off, VmState::Stopped).await;
    world.kill().await;
    {
        // While there was no daemon, one machine vanished, one came up that should be off, one guest shut down.
        let mut state = world.test.drivers.state();
        let machine = state.machines.remove(&lost).unwrap();
        state.machines.insert(off, machine);
        state.machines.get_mut(&ended).unwrap().1 = PowerState::Shutdown;
    }
    world.calls();
    world.start();
    world.rests(ended, VmState::Stopped).await;
    let mut events = world.test.cloud.store.subscribe();
    while world.machine(lost).is_none() || world.machine(off).is_some() {
        // Both need no change of a row's state, yet the repair of one writes it.
        let _ = tokio::time::timeout(Duration::from_millis(50), events.recv()).await;
    }
    assert_eq!(world.machine(runs), Some(PowerState::Running));
    let mut calls = world.calls();
    calls.sort();
    assert_eq!(calls, ["start", "stop", "stop"]);
}

#[tokio::test]
async fn a_machine_whose_row_is_history_is_ended_and_an_unknown_one_left_alone() {
    let mut world = World::new().await;
    world.start();
    let id = world.active().await;
    world.act(id, Action::Delete).await;
    world.until(id, |s| s.deleted).await;
    world.kill().await;
    let unknown = Uuid::new_v4();
    {
        let mut state = world.test.drivers.state();
        for id in [id, unknown] {
            let machine = Machine {
                id,
                name: "x".into(),
                vcpus: 1,
                memory_mib: 1,
                boot: model::machine::Boot::Bios,
                disks: vec![],
                nics: vec![],
                config_drive: vec![],
            };
            state.machines.insert(id, (machine, PowerState::Running));
        }
    }
    world.start();
    let idle = |world: &World| {
        world
            .test
            .cloud
            .workers
            .list()
            .iter()
            .any(|w| w.name == NAME && w.activity == Activity::Idle)
    };
    while world.machine(id).is_some() || !idle(&world) {
        tokio::task::yield_now().await;
    }
    assert!(world.machine(unknown).is_some());
}

#[tokio::test]
async fn no_room_is_no_valid_host() {
    let mut world = World::new().await;
    world.start();
    let mut large = sample("large");
    large.flavor.ram = 1 << 30;
    let id = world.insert(large).await;
    let server = world.rests(id, VmState::Error).await;
    assert!(server.host.is_none());
    assert!(
        server
            .fault
            .unwrap()
            .message
            .starts_with("No valid host was found.")
    );
    // 16 processors, 16 times each: what has 17 of its own never fits.
    let mut wide = sample("wide");
    wide.flavor.vcpus = 17;
    let id = world.insert(wide).await;
    world.rests(id, VmState::Error).await;
}

#[tokio::test]
async fn members_of_an_anti_affinity_group_are_not_on_one_node() {
    let mut world = World::new().await;
    world.start();
    let ctx = world.test.context("u", "p", "member").await;
    let group = groups::create(&world.test.cloud, &ctx, "g".into(), Policy::AntiAffinity, None)
        .await
        .unwrap();
    let mut states = Vec::new();
    for name in ["a", "b"] {
        let mut server = sample(name);
        server.server_group = Some(group.id);
        let id = world.insert(server).await;
        states.push(world.until(id, |s| s.task_state.is_none()).await.vm_state);
    }
    assert_eq!(states, [VmState::Active, VmState::Error]);
}

/// Machines whose guests do not react to the power button.
struct Stubborn {
    inner: Arc<crate::testing::Remembering>,
    asked: Arc<Notify>,
}

#[async_trait]
impl Machines for Stubborn {
    async fn start(&self, machine: &Machine) -> Result<(), DriverError> {
        self.inner.start(machine).await
    }
    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), DriverError> {
        if mode == StopMode::Hard {
            return self.inner.stop(id, mode).await;
        }
        self.asked.notify_one();
        std::future::pending().await
    }
    async fn reset(&self, id: Uuid) -> Result<(), DriverError> {
        self.inner.reset(id).await
    }
    async fn pause(&self, id: Uuid) -> Result<(), DriverError> {
        self.inner.pause(id).await
    }
    async fn resume(&self, id: Uuid) -> Result<(), DriverError> {
        self.inner.resume(id).await
    }
    async fn forget(&self, id: Uuid) -> Result<(), DriverError> {
        self.inner.forget(id).await
    }
    async fn attach_disk(&self, machine: Uuid, disk: &MachineDisk) -> Result<(), DriverError> {
        self.inner.attach_disk(machine, disk).await
    }
    async fn detach_disk(&self, machine: Uuid, volume: Uuid) -> Result<(), DriverError> {
        self.inner.detach_disk(machine, volume).await
    }
    async fn resize_disk(&self, volume: Uuid, size: u64) -> Result<(), DriverError> {
        self.inner.resize_disk(volume, size).await
    }
    async fn disk_limits(&self, machine: Uuid) -> Result<Vec<(Uuid, DiskLimits)>, DriverError> {
        self.inner.disk_limits(machine).await
    }
    async fn limit_disk(&self, machine: Uuid, volume: Uuid, limits: &DiskLimits) -> Result<(), DriverError> {
        self.inner.limit_disk(machine, volume, limits).await
    }
    async fn attach_port(&self, machine: Uuid, nic: &MachineNic) -> Result<(), DriverError> {
        self.inner.attach_port(machine, nic).await
    }
    async fn detach_port(&self, machine: Uuid, port: Uuid) -> Result<(), DriverError> {
        self.inner.detach_port(machine, port).await
    }
    async fn list(&self) -> Result<Vec<(Uuid, PowerState)>, DriverError> {
        self.inner.list().await
    }
    async fn console_log(&self, id: Uuid, max_bytes: usize) -> Result<Vec<u8>, DriverError> {
        self.inner.console_log(id, max_bytes).await
    }
    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.inner.events()
    }
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }
}

#[tokio::test]
async fn deletion_does_not_wait_for_a_guest_that_ignores_the_power_button() {
    let mut world = World::new().await;
    let asked = Arc::new(Notify::new());
    let stubborn = Arc::new(Stubborn {
        inner: world.test.drivers.clone(),
        asked: asked.clone(),
    });
    let old = world.test.cloud.clone();
    world.test.cloud = Arc::new(Cloud {
        store: old.store.clone(),
        config: old.config.clone(),
        drivers: Drivers {
            machines: stubborn,
            ..old.drivers.clone()
        },
        identity: old.identity.clone(),
        workers: Default::default(),
    });
    world.start();
    for action in [Action::Stop, Action::Reboot { hard: false }] {
        let id = world.active().await;
        world.act(id, action).await;
        asked.notified().await;
        world.act(id, Action::Delete).await;
        world.until(id, |s| s.deleted).await;
        assert!(world.machine(id).is_none());
    }
    // A hard reboot overtakes a soft one as well.
    let id = world.active().await;
    world.act(id, Action::Reboot { hard: false }).await;
    asked.notified().await;
    world.act(id, Action::Reboot { hard: true }).await;
    world.rests(id, VmState::Active).await;
    assert_eq!(world.machine(id), Some(PowerState::Running));
}

#[tokio::test]
async fn actions_are_refused_in_the_wrong_state_and_while_locked() {
    let mut world = World::new().await;
    world.start();
    let id = world.active().await;
    let member = Context {
        roles: vec!["member".into(), "reader".into()],
        scope: crate::context::Scope::Project {
            id: "p".into(),
            domain_id: "default".into(),
        },
        ..world.admin.clone()
    };
    let try_as = |ctx: Context, action: Action| {
        let cloud = world.test.cloud.clone();
        async move { act(&cloud, &ctx, &id.to_string(), action).await }
    };
    let conflict = |result: crate::Result<()>| matches!(result, Err(Error::Conflict(_)));
    assert!(conflict(try_as(member.clone(), Action::Start).await));
    assert!(conflict(try_as(member.clone(), Action::Unpause).await));
    try_as(
        member.clone(),
        Action::Lock {
            reason: Some("why".into()),
        },
    )
    .await
    .unwrap();
    assert!(conflict(try_as(member.clone(), Action::Stop).await));
    assert!(conflict(try_as(member.clone(), Action::Delete).await));
    try_as(member.clone(), Action::Unlock).await.unwrap();
    // What an admin has locked, only an admin unlocks.
    try_as(world.admin.clone(), Action::Lock { reason: None })
        .await
        .unwrap();
    assert!(matches!(
        try_as(member.clone(), Action::Unlock).await,
        Err(Error::Forbidden(_))
    ));
    assert!(matches!(
        try_as(member.clone(), Action::ResetState { active: true }).await,
        Err(Error::Forbidden(_))
    ));
    let stranger = Context {
        scope: crate::context::Scope::Project {
            id: "q".into(),
            domain_id: "default".into(),
        },
        ..member.clone()
    };
    assert!(matches!(
        try_as(stranger, Action::Stop).await,
        Err(Error::NotFound { .. })
    ));
    try_as(world.admin.clone(), Action::Unlock).await.unwrap();
    try_as(member, Action::Delete).await.unwrap();
    world.until(id, |s| s.deleted).await;
}

#[tokio::test]
async fn a_servers_history_has_a_bound_and_is_read_in_pages() {
    let world = World::new().await;
    let server = sample("vm");
    let id = world.insert(server.clone()).await;
    let ctx = world.admin.clone();
    world
        .test
        .cloud
        .store
        .write("test", move |conn| {
            for number in 0..1010 {
                let ctx = Context {
                    request_id: format!("req-{number:04}"),
                    ..ctx.clone()
                };
                servers::record(conn, &ctx, &server, ("lock", "api_lock"), true)?;
            }
            // Another server's is its own.
            let other = sample("other");
            servers::record(conn, &ctx, &other, ("lock", "api_lock"), true)
        })
        .await
        .unwrap();
    let page = async |marker: Option<String>, limit| {
        let page = crate::compute::actions::Page {
            marker,
            limit,
            ..Default::default()
        };
        let id = id.to_string();
        crate::compute::actions::history(&world.test.cloud, &world.admin, &id, true, page).await
    };
    let (mut marker, mut seen) = (None, Vec::new());
    loop {
        let entries = page(marker, 300).await.unwrap();
        let Some(last) = entries.last() else { break };
        marker = Some(last.request_id.clone());
        seen.extend(entries.into_iter().map(|entry| entry.request_id));
    }
    let latest: Vec<String> = (10..1010)
        .rev()
        .map(|number| format!("req-{number:04}"))
        .collect();
    assert_eq!(seen, latest);
    let gone = page(Some("req-0009".into()), 1).await;
    assert!(matches!(gone, Err(Error::BadRequest(_))), "{gone:?}");
}
