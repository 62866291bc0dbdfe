//! `POST /servers/{id}/action`.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::actions::{Action, act as carry_out};
use cloud::compute::servers;
use serde_json::{Value, json};

use super::check::{Object, name_of};
use super::microversion::Microversion;
use super::{Answer, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

/// What a body asks for.
enum Request {
    Act(Action),
    Console(Option<usize>),
    /// One of Nova's actions that this cloud does not have.
    Absent(&'static str),
    /// One that this version does not have.
    Gone,
}

/// Nova's actions that need what is not here.
const ABSENT: &[&str] = &[
    "changePassword",
    "confirmResize",
    "createBackup",
    "createImage",
    "evacuate",
    "injectNetworkInfo",
    "migrate",
    "os-getRDPConsole",
    "os-getSPICEConsole",
    "os-getSerialConsole",
    "os-getVNCConsole",
    "os-migrateLive",
    "os-resetNetwork",
    "rebuild",
    "rescue",
    "resetNetwork",
    "resize",
    "resume",
    "restore",
    "revertResize",
    "shelve",
    "shelveOffload",
    "suspend",
    "trigger_crash_dump",
    "unrescue",
    "unshelve",
];

fn parse(body: &Value, version: Microversion) -> Result<Request, Error> {
    Object::body(body)?;
    let mut keys = body.as_object().into_iter().flatten();
    let (Some((key, value)), None) = (keys.next(), keys.next()) else {
        return Err(Error::BadRequest(
            "Malformed request body: one action is needed.".into(),
        ));
    };
    let inner = || Object::of(key.as_str(), value);
    Ok(Request::Act(match key.as_str() {
        "os-start" => Action::Start,
        "os-stop" => Action::Stop,
        "pause" => Action::Pause,
        "unpause" => Action::Unpause,
        "forceDelete" => Action::Delete,
        "unlock" => Action::Unlock,
        "lock" => Action::Lock {
            reason: lock_reason(value, version)?,
        },
        "reboot" => {
            let reboot = inner()?;
            reboot.allow(&["type"])?;
            reboot.required("type")?;
            match reboot.string("type", 0, 255)?.unwrap_or_default() {
                "HARD" | "Hard" | "hard" => Action::Reboot { hard: true },
                "SOFT" | "Soft" | "soft" => Action::Reboot { hard: false },
                other => {
                    let why =
                        format!("'{other}' is not one of ['HARD', 'Hard', 'hard', 'SOFT', 'Soft', 'soft']");
                    return Err(super::check::invalid("reboot.type", &json!(other), &why));
                }
            }
        }
        "os-resetState" => {
            let reset = inner()?;
            reset.allow(&["state"])?;
            reset.required("state")?;
            match reset.string("state", 0, 255)?.unwrap_or_default() {
                "active" => Action::ResetState { active: true },
                "error" => Action::ResetState { active: false },
                other => {
                    let why = format!("'{other}' is not one of ['active', 'error']");
                    return Err(super::check::invalid("os-resetState.state", &json!(other), &why));
                }
            }
        }
        "addSecurityGroup" | "removeSecurityGroup" => {
            let group = inner()?;
            group.allow(&["name"])?;
            let name = name_of(&group.path("name"), group.required("name")?)?;
            if key == "addSecurityGroup" {
                Action::AddSecurityGroup(name)
            } else {
                Action::RemoveSecurityGroup(name)
            }
        }
        "os-getConsoleOutput" => {
            let console = inner()?;
            console.allow(&["length"])?;
            let length = match console.get("length") {
                None | Some(Value::Null) => None,
                // -1: all of it.
                Some(_) => console
                    .integer("length", -1, i64::MAX)?
                    .and_then(|n| usize::try_from(n).ok()),
            };
            return Ok(Request::Console(length));
        }
        // They left Nova in 2.44; here they never were.
        "addFloatingIp" | "removeFloatingIp" | "addFixedIp" | "removeFixedIp" => return Ok(Request::Gone),
        other => {
            if let Some(name) = ABSENT.iter().find(|name| **name == other) {
                return Ok(Request::Absent(name));
            }
            let other: String = other.chars().take(64).collect();
            return Err(Error::BadRequest(format!("There is no such action: {other}")));
        }
    }))
}

fn lock_reason(value: &Value, version: Microversion) -> Result<Option<String>, Error> {
    if version < Microversion::LOCKED_REASON || value.is_null() {
        return Ok(None);
    }
    let lock = Object::of("lock", value)?;
    lock.allow(&["locked_reason"])?;
    Ok(lock.string("locked_reason", 1, 255)?.map(str::to_owned))
}

pub(super) async fn act(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    match parse(&body, version)? {
        Request::Act(action) => {
            let deletes = action == Action::Delete;
            carry_out(&app.cloud, &ctx, &id, action).await?;
            empty(if deletes {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::ACCEPTED
            })
        }
        Request::Console(lines) => {
            let output = servers::console_log(&app.cloud, &ctx, &id, lines).await?;
            ok(json!({"output": output}))
        }
        Request::Absent(name) => {
            servers::show(&app.cloud, &ctx, &id).await?;
            Err(Error::BadRequest(format!("The action '{name}' is not available in this cloud.")).into())
        }
        Request::Gone => Err(gone()),
    }
}
