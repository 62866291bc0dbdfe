//! `POST /servers/{id}/action`.

use axum::extract::{Path, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::IntoResponse;
use cloud::Error;
use cloud::compute::actions::{Action, act as carry_out};
use cloud::compute::change::{Backup, NewImage, Rebuild, Unshelve};
use cloud::compute::{groups, servers};
use serde_json::{Value, json};

use super::check::{Object, metadata_of, name_of, uuid_of};
use super::microversion::Microversion;
use super::views::Links;
use super::{Answer, empty, gone, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::Json;

/// What a body asks for.
enum Request {
    Act(Action),
    /// Answered with the server as it is to be, and its password.
    Rebuild(Box<Rebuild>, String),
    /// Answered with the image's id.
    Image(Box<NewImage>),
    /// Answered with a password.
    Rescue(Option<uuid::Uuid>, String),
    Console(Option<usize>),
    /// One of Nova's actions that this cloud does not have, and why.
    Absent(&'static str, &'static str),
    /// One that this version does not have.
    Gone,
}

/// Nova's actions that need what is not here: another node, an agent in the guest, a screen.
const ABSENT: &[(&str, &str)] = &[
    ("changePassword", "it needs an agent in the guest"),
    ("injectNetworkInfo", "guests ask for their addresses"),
    ("os-getRDPConsole", "there are no consoles to look at"),
    ("os-getSPICEConsole", "there are no consoles to look at"),
    ("os-getSerialConsole", "there are no consoles to look at"),
    ("os-getVNCConsole", "there are no consoles to look at"),
    ("os-resetNetwork", "guests ask for their addresses"),
    ("resetNetwork", "guests ask for their addresses"),
    ("resume", "servers are paused, not suspended"),
    ("suspend", "pause the server instead"),
    (
        "trigger_crash_dump",
        "it needs a device that machines here do not have",
    ),
];

/// Actions of admins that need another node.
const MOVES: &[&str] = &["evacuate", "migrate", "os-migrateLive"];

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
        "resize" => {
            let resize = inner()?;
            resize.allow(&["flavorRef", "OS-DCF:diskConfig"])?;
            let flavor = match resize.required("flavorRef")? {
                Value::Number(number) => number.to_string(),
                Value::String(text) if !text.is_empty() => super::create::last_segment(text),
                value => {
                    return Err(super::check::invalid(
                        "resize.flavorRef",
                        value,
                        "It is not the id of a flavor",
                    ));
                }
            };
            Action::Resize {
                flavor,
                disk_config: super::create::disk_config(&resize)?,
            }
        }
        "confirmResize" => Action::ConfirmResize,
        "revertResize" => Action::RevertResize,
        "rebuild" => {
            let (rebuild, password) = parse_rebuild(&inner()?, version)?;
            return Ok(Request::Rebuild(Box::new(rebuild), password));
        }
        "createImage" => {
            let image = inner()?;
            image.allow(&["name", "metadata"])?;
            image.required("name")?;
            return Ok(Request::Image(Box::new(NewImage {
                id: uuid::Uuid::new_v4(),
                name: image.name("name")?.unwrap_or_default(),
                metadata: match image.get("metadata") {
                    Some(value) => metadata_of("createImage.metadata", value)?,
                    None => Default::default(),
                },
                backup: None,
            })));
        }
        "rescue" => {
            if value.is_null() {
                return Ok(Request::Rescue(None, super::create::password()));
            }
            let rescue = inner()?;
            rescue.allow(&["adminPass", "rescue_image_ref"])?;
            let image = match rescue.get("rescue_image_ref") {
                None | Some(Value::Null) => None,
                Some(value) => Some(uuid_of("rescue.rescue_image_ref", value)?),
            };
            return Ok(Request::Rescue(image, admin_pass(&rescue)?));
        }
        "restore" => Action::Restore,
        "createBackup" => {
            let backup = inner()?;
            backup.allow(&["name", "backup_type", "rotation", "metadata"])?;
            for key in ["name", "backup_type", "rotation"] {
                backup.required(key)?;
            }
            return Ok(Request::Image(Box::new(NewImage {
                id: uuid::Uuid::new_v4(),
                name: backup.name("name")?.unwrap_or_default(),
                metadata: match backup.get("metadata") {
                    Some(value) => metadata_of("createBackup.metadata", value)?,
                    None => Default::default(),
                },
                backup: Some(Backup {
                    kind: backup
                        .string("backup_type", 0, 255)?
                        .unwrap_or_default()
                        .to_owned(),
                    rotation: backup
                        .integer("rotation", 0, i64::from(i32::MAX))?
                        .and_then(|n| usize::try_from(n).ok())
                        .unwrap_or(0),
                }),
            })));
        }
        "unrescue" => Action::Unrescue,
        "shelve" => Action::Shelve,
        "shelveOffload" => Action::ShelveOffload,
        "unshelve" if value.is_null() => Action::Unshelve(Unshelve::default()),
        "unshelve" => Action::Unshelve(unshelve(&inner()?, version)?),
        // They left Nova in 2.44; here they never were.
        "addFloatingIp" | "removeFloatingIp" | "addFixedIp" | "removeFixedIp" => return Ok(Request::Gone),
        other => {
            if let Some((name, why)) = ABSENT.iter().find(|(name, _)| *name == other) {
                return Ok(Request::Absent(name, why));
            }
            if let Some(name) = MOVES.iter().find(|name| **name == other) {
                return Ok(Request::Absent(
                    name,
                    "no valid host was found: there is one node",
                ));
            }
            let other: String = other.chars().take(64).collect();
            return Err(Error::BadRequest(format!("There is no such action: {other}")));
        }
    }))
}

fn unshelve(unshelve: &Object<'_>, version: Microversion) -> Result<Unshelve, Error> {
    let mut known = Vec::new();
    if version >= Microversion::UNSHELVE_ZONE {
        known.push("availability_zone");
    }
    if version >= Microversion::UNSHELVE_HOST {
        known.push("host");
    }
    unshelve.allow(&known)?;
    Ok(Unshelve {
        zone: match unshelve.get("availability_zone") {
            Some(Value::Null) if version >= Microversion::UNSHELVE_HOST => Some(None),
            _ => unshelve.name("availability_zone")?.map(Some),
        },
        host: unshelve.string("host", 0, 255)?.map(str::to_owned),
    })
}

fn lock_reason(value: &Value, version: Microversion) -> Result<Option<String>, Error> {
    if version < Microversion::LOCKED_REASON || value.is_null() {
        return Ok(None);
    }
    let lock = Object::of("lock", value)?;
    lock.allow(&["locked_reason"])?;
    Ok(lock.string("locked_reason", 1, 255)?.map(str::to_owned))
}

fn admin_pass(object: &Object<'_>) -> Result<String, Error> {
    Ok(match object.string("adminPass", 0, 255)? {
        Some(password) => password.to_owned(),
        None => super::create::password(),
    })
}

fn parse_rebuild(rebuild: &Object<'_>, version: Microversion) -> Result<(Rebuild, String), Error> {
    let mut known = vec![
        "imageRef",
        "name",
        "adminPass",
        "metadata",
        "preserve_ephemeral",
        "OS-DCF:diskConfig",
        "accessIPv4",
        "accessIPv6",
    ];
    for (key, from) in [
        ("description", Microversion::DESCRIPTION),
        ("key_name", Microversion::REBUILD_KEY),
        ("user_data", Microversion::NO_PERSONALITY),
        ("trusted_image_certificates", Microversion::TRUSTED_CERTIFICATES),
        ("hostname", Microversion::HOSTNAME),
    ] {
        if version >= from {
            known.push(key);
        }
    }
    if version < Microversion::NO_PERSONALITY {
        known.push("personality");
    }
    rebuild.allow(&known)?;
    for (key, why) in [
        (
            "personality",
            "Files are not injected: use user_data or a config drive",
        ),
        (
            "trusted_image_certificates",
            "Image signatures are not verified here",
        ),
    ] {
        if let Some(value) = rebuild.get(key)
            && !value.is_null()
            && !value.as_array().is_some_and(Vec::is_empty)
        {
            return Err(super::check::invalid(&rebuild.path(key), value, why));
        }
    }
    if rebuild.boolean("preserve_ephemeral")? == Some(true) {
        return Err(Error::BadRequest(
            "The current driver does not support preserving ephemeral partitions.".into(),
        ));
    }
    let new = Rebuild {
        image: super::create::image_of(rebuild.required("imageRef")?)?,
        root: uuid::Uuid::nil(),
        name: rebuild.name("name")?,
        hostname: super::create::hostname(rebuild, version)?,
        description: rebuild
            .nullable("description", 255)?
            .map(|text| text.map(str::to_owned)),
        metadata: match rebuild.get("metadata") {
            Some(value) => Some(metadata_of("rebuild.metadata", value)?),
            None => None,
        },
        key_name: match rebuild.get("key_name") {
            None => None,
            Some(Value::Null) => Some(None),
            Some(_) => Some(rebuild.name("key_name")?),
        },
        user_data: match rebuild.get("user_data") {
            None => None,
            Some(_) => Some(super::create::user_data(rebuild)?),
        },
        access_ip_v4: super::create::access_ip(rebuild, "accessIPv4")?,
        access_ip_v6: super::create::access_ip(rebuild, "accessIPv6")?,
        disk_config: super::create::disk_config(rebuild)?,
        reimage: version >= Microversion::REBUILD_VOLUME_BACKED,
    };
    Ok((new, admin_pass(rebuild)?))
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
            let done = matches!(action, Action::Delete | Action::ConfirmResize);
            carry_out(&app.cloud, &ctx, &id, action).await?;
            empty(if done {
                StatusCode::NO_CONTENT
            } else {
                StatusCode::ACCEPTED
            })
        }
        Request::Rebuild(rebuild, password) => {
            carry_out(&app.cloud, &ctx, &id, Action::Rebuild(rebuild)).await?;
            let details = servers::show(&app.cloud, &ctx, &id).await?;
            let links = Links::new(&app);
            let groups = groups::of_server(&app.cloud, details.server.server_group).await?;
            let mut view = super::servers::changed_view(&links, version, &ctx, &details, groups);
            view["adminPass"] = json!(password);
            if version >= Microversion::REBUILD_KEY {
                view["key_name"] = json!(details.server.key.as_ref().map(|key| &key.name));
            }
            if version >= Microversion::NO_PERSONALITY {
                view["user_data"] = json!(servers::user_data_of(&app.cloud, &ctx, &id).await?);
                if let Some(fields) = view.as_object_mut() {
                    // Told once.
                    fields.remove("OS-EXT-SRV-ATTR:user_data");
                }
            }
            let mut response = (StatusCode::ACCEPTED, Json(json!({"server": view}))).into_response();
            if let Ok(location) = HeaderValue::from_str(&links.own("servers", &id)) {
                response.headers_mut().insert(LOCATION, location);
            }
            Ok(response)
        }
        Request::Image(image) => {
            let image_id = image.id;
            carry_out(&app.cloud, &ctx, &id, Action::CreateImage(image)).await?;
            if version >= Microversion::IMAGE_ID {
                let body = json!({"image_id": image_id});
                return Ok((StatusCode::ACCEPTED, Json(body)).into_response());
            }
            let mut response = StatusCode::ACCEPTED.into_response();
            let url = format!("{}/image/v2/images/{image_id}", app.cloud.config.public_url);
            if let Ok(location) = HeaderValue::from_str(&url) {
                response.headers_mut().insert(LOCATION, location);
            }
            Ok(response)
        }
        Request::Rescue(image, password) => {
            if version < Microversion::RESCUE_VOLUME_BACKED
                && servers::show(&app.cloud, &ctx, &id).await?.server.volume_backed
            {
                return Err(
                    Error::BadRequest("Cannot rescue a volume-backed instance before 2.87.".into()).into(),
                );
            }
            carry_out(&app.cloud, &ctx, &id, Action::Rescue { image }).await?;
            ok(json!({"adminPass": password}))
        }
        Request::Console(lines) => {
            let output = servers::console_log(&app.cloud, &ctx, &id, lines).await?;
            ok(json!({"output": output}))
        }
        Request::Absent(name, why) => {
            if MOVES.contains(&name) {
                ctx.require("servers", if name == "evacuate" { "evacuate" } else { "migrate" })?;
            } else {
                ctx.require("servers", "action")?;
            }
            servers::show(&app.cloud, &ctx, &id).await?;
            Err(Error::BadRequest(format!(
                "The action '{name}' is not available in this cloud: {why}."
            ))
            .into())
        }
        Request::Gone => Err(gone()),
    }
}
