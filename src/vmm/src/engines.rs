//! Two engines as one: new machines are started by the chosen one, and those that run on the other one are looked after
//! until they end. So the choice may change, by configuration or with a release, while guests run.

use async_trait::async_trait;
use model::disk::{DiskLimits, DiskTransport};
use model::machine::{MachineEvent, PowerState, StopMode};
use tokio::sync::broadcast;
use tracing::warn;
use uuid::Uuid;

use crate::{Engine, EngineError, Plan, PlannedDevice};

/// The engines of a node.
pub struct Engines {
    chosen: Box<dyn Engine>,
    other: Box<dyn Engine>,
    events: broadcast::Sender<MachineEvent>,
}

impl Engines {
    /// Start machines with `chosen`. To be called within a Tokio runtime.
    pub fn new(chosen: Box<dyn Engine>, other: Box<dyn Engine>) -> Self {
        let (events, _) = broadcast::channel(1024);
        for engine in [&chosen, &other] {
            tokio::spawn(forward(engine.events(), events.clone()));
        }
        Engines {
            chosen,
            other,
            events,
        }
    }

    /// The one that a machine runs on, or would be started by.
    fn of(&self, id: Uuid) -> &dyn Engine {
        let has = |engine: &dyn Engine| engine.list().iter().any(|(other, _)| *other == id);
        if !has(&*self.chosen) && has(&*self.other) {
            &*self.other
        } else {
            &*self.chosen
        }
    }
}

async fn forward(mut from: broadcast::Receiver<MachineEvent>, to: broadcast::Sender<MachineEvent>) {
    loop {
        match from.recv().await {
            // Nobody may be listening.
            Ok(event) => drop(to.send(event)),
            Err(broadcast::error::RecvError::Lagged(lost)) => warn!(lost, "guests' events were lost"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

#[async_trait]
impl Engine for Engines {
    fn name(&self) -> &'static str {
        self.chosen.name()
    }

    fn disk_transport(&self, id: Uuid) -> DiskTransport {
        self.of(id).disk_transport(id)
    }

    async fn start(&self, plan: &Plan) -> Result<(), EngineError> {
        self.of(plan.id).start(plan).await
    }

    async fn stop(&self, id: Uuid, mode: StopMode) -> Result<(), EngineError> {
        self.of(id).stop(id, mode).await
    }

    async fn reset(&self, id: Uuid) -> Result<(), EngineError> {
        self.of(id).reset(id).await
    }

    async fn pause(&self, id: Uuid) -> Result<(), EngineError> {
        self.of(id).pause(id).await
    }

    async fn resume(&self, id: Uuid) -> Result<(), EngineError> {
        self.of(id).resume(id).await
    }

    async fn plug(&self, id: Uuid, device: &PlannedDevice) -> Result<(), EngineError> {
        self.of(id).plug(id, device).await
    }

    async fn unplug(&self, id: Uuid, socket: &str) -> Result<(), EngineError> {
        self.of(id).unplug(id, socket).await
    }

    async fn resize(&self, id: Uuid, socket: &str, bytes: u64) -> Result<(), EngineError> {
        self.of(id).resize(id, socket, bytes).await
    }

    async fn limit(&self, id: Uuid, socket: &str, limits: &DiskLimits) -> Result<(), EngineError> {
        self.of(id).limit(id, socket, limits).await
    }

    async fn adopt(&self) -> Result<(), EngineError> {
        self.chosen.adopt().await?;
        self.other.adopt().await
    }

    fn list(&self) -> Vec<(Uuid, PowerState)> {
        let mut machines = self.chosen.list();
        machines.extend(self.other.list());
        machines
    }

    fn events(&self) -> broadcast::Receiver<MachineEvent> {
        self.events.subscribe()
    }
}
