//! `os-interface` and `os-volume_attachments`: what comes to a server and leaves it.

use std::collections::HashMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use cloud::Error;
use cloud::compute::attach::{self, NewVolume};
use cloud::compute::disks::Disk;
use cloud::compute::servers::{self, Interface, NetRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use super::check::{Object, boolean_of, invalid, uuid_of};
use super::create::tag_of;
use super::microversion::Microversion;
use super::{Answer, empty, known_queries, ok};
use crate::AppState;
use crate::auth::Auth;
use crate::body::{Json, Pairs};

fn interface_view(version: Microversion, interface: &Interface, tags: &HashMap<Uuid, String>) -> Value {
    let ips: Vec<Value> = interface
        .fixed_ips
        .iter()
        .map(|(subnet, ip)| json!({"subnet_id": subnet, "ip_address": ip}))
        .collect();
    let mut view = json!({
        "port_id": interface.port,
        "net_id": interface.network,
        "mac_addr": interface.mac,
        "port_state": interface.status,
        "fixed_ips": ips,
    });
    if version >= Microversion::INTERFACE_TAGS {
        view["tag"] = json!(tags.get(&interface.port));
    }
    view
}

/// A server's id, once it is known that the server is there.
fn id_of(id: &str) -> Uuid {
    id.parse().unwrap_or_default()
}

pub(super) async fn interfaces(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
) -> Answer {
    let all = servers::interfaces(&app.cloud, &ctx, &id).await?;
    let tags = attach::port_tags(&app.cloud, id_of(&id)).await?;
    let views: Vec<Value> = all.iter().map(|i| interface_view(version, i, &tags)).collect();
    ok(json!({"interfaceAttachments": views}))
}

pub(super) async fn interface(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, port)): Path<(String, String)>,
) -> Answer {
    let all = servers::interfaces(&app.cloud, &ctx, &id).await?;
    match all.iter().find(|i| i.port.to_string() == port) {
        Some(interface) => {
            let tags = attach::port_tags(&app.cloud, id_of(&id)).await?;
            ok(json!({"interfaceAttachment": interface_view(version, interface, &tags)}))
        }
        None => Err(Error::not_found("Port", port).into()),
    }
}

fn parse_interface(body: &Value, version: Microversion) -> Result<(NetRequest, Option<String>), Error> {
    let Some(asked) = body.get("interfaceAttachment") else {
        let whole = Object::body(body)?;
        whole.required("interfaceAttachment")?;
        return Ok((NetRequest::default(), None));
    };
    let new = Object::of("interfaceAttachment", asked)?;
    let mut known = vec!["net_id", "port_id", "fixed_ips"];
    if version >= Microversion::ATTACH_TAGS {
        known.push("tag");
    }
    new.allow(&known)?;
    let id = |key: &str| match new.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => uuid_of(&new.path(key), value).map(Some),
    };
    let (network, port) = (id("net_id")?, id("port_id")?);
    let mut fixed_ip = None;
    if let Some(list) = new.array("fixed_ips")? {
        let value = json!(list);
        let [one] = list.as_slice() else {
            return Err(invalid(
                &new.path("fixed_ips"),
                &value,
                "It is not a list of one address",
            ));
        };
        let one = Object::of(new.path("fixed_ips[0]"), one)?;
        one.allow(&["ip_address"])?;
        let value = one.required("ip_address")?;
        let ip = value.as_str().and_then(|text| text.parse().ok());
        fixed_ip =
            Some(ip.ok_or_else(|| invalid(&one.path("ip_address"), value, "It is not an IP address"))?);
    }
    if fixed_ip.is_some() && network.is_none() {
        return Err(Error::BadRequest(
            "Must input network_id when request IP address".into(),
        ));
    }
    if network.is_some() && port.is_some() {
        return Err(Error::BadRequest(
            "Must not input both network_id and port_id".into(),
        ));
    }
    let tag = new.get("tag").filter(|v| !v.is_null());
    let tag = tag.map(|tag| tag_of(&new.path("tag"), tag)).transpose()?;
    Ok((
        NetRequest {
            network,
            port,
            fixed_ip,
        },
        tag,
    ))
}

pub(super) async fn attach_interface(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let (request, tag) = parse_interface(&body, version)?;
    let interface = attach::attach_port(&app.cloud, &ctx, &id, request, tag).await?;
    let tags = attach::port_tags(&app.cloud, id_of(&id)).await?;
    ok(json!({"interfaceAttachment": interface_view(version, &interface, &tags)}))
}

pub(super) async fn detach_interface(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, port)): Path<(String, String)>,
) -> Answer {
    attach::detach_port(&app.cloud, &ctx, &id, &port).await?;
    empty(StatusCode::ACCEPTED)
}

fn volume_view(version: Microversion, disk: &Disk) -> Value {
    let mut view = json!({
        "volumeId": disk.volume,
        "serverId": disk.server,
        "device": disk.device,
    });
    if version < Microversion::ATTACHMENT_IDS {
        view["id"] = json!(disk.volume);
    }
    if version >= Microversion::INTERFACE_TAGS {
        view["tag"] = json!(disk.tag);
    }
    if version >= Microversion::DELETE_ON_TERMINATION {
        view["delete_on_termination"] = json!(disk.delete_on_termination);
    }
    if version >= Microversion::ATTACHMENT_IDS {
        view["attachment_id"] = json!(disk.attachment);
        // A row's own id in Nova's tables; one disk is one row here.
        view["bdm_uuid"] = json!(Uuid::from_u128(disk.server.as_u128() ^ disk.volume.as_u128()));
    }
    view
}

pub(super) async fn volumes(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    pairs: Pairs,
) -> Answer {
    known_queries(version, &pairs, &["limit", "offset"])?;
    let all = attach::volumes_of(&app.cloud, &ctx, &id).await?;
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let offset = pairs.number("offset")?.map_or(0, size);
    let limit = pairs.number("limit")?.map_or(usize::MAX, size);
    let views: Vec<Value> = all
        .iter()
        .skip(offset)
        .take(limit)
        .map(|disk| volume_view(version, disk))
        .collect();
    ok(json!({"volumeAttachments": views}))
}

pub(super) async fn volume(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, volume)): Path<(String, String)>,
) -> Answer {
    let disk = attach::volume_of(&app.cloud, &ctx, &id, &volume).await?;
    ok(json!({"volumeAttachment": volume_view(version, &disk)}))
}

pub(super) async fn attach_volume(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path(id): Path<String>,
    Json(body): Json<Value>,
) -> Answer {
    let new = Object::only(&body, "volumeAttachment")?;
    let mut known = vec!["volumeId", "device"];
    if version >= Microversion::ATTACH_TAGS {
        known.push("tag");
    }
    if version >= Microversion::DELETE_ON_TERMINATION {
        known.push("delete_on_termination");
    }
    new.allow(&known)?;
    let tag = new.get("tag").filter(|v| !v.is_null());
    let request = NewVolume {
        volume: uuid_of(&new.path("volumeId"), new.required("volumeId")?)?,
        device: match new.get("device") {
            None | Some(Value::Null) => None,
            Some(_) => new.string("device", 1, 255)?.map(str::to_owned),
        },
        tag: tag.map(|tag| tag_of(&new.path("tag"), tag)).transpose()?,
        delete_on_termination: new.boolean("delete_on_termination")?.unwrap_or(false),
        multiattach: version >= Microversion::MULTIATTACH,
    };
    let disk = attach::attach_volume(&app.cloud, &ctx, &id, request).await?;
    let mut view = volume_view(version, &disk);
    if let Some(fields) = view.as_object_mut()
        && version >= Microversion::ATTACHMENT_IDS
    {
        fields.insert("id".into(), json!(disk.volume));
        fields.remove("attachment_id");
        fields.remove("bdm_uuid");
    }
    ok(json!({"volumeAttachment": view}))
}

/// Says whether a volume goes with its server (2.85). Exchanging one volume for another is Cinder's to ask for, and is not here.
pub(super) async fn update_volume(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    version: Microversion,
    Path((id, volume)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Answer {
    let new = Object::only(&body, "volumeAttachment")?;
    let mut known = vec!["volumeId"];
    if version >= Microversion::UPDATE_TERMINATION {
        known.extend(["delete_on_termination", "device", "tag", "id", "serverId"]);
    }
    new.allow(&known)?;
    let named = uuid_of(&new.path("volumeId"), new.required("volumeId")?)?;
    if named.to_string() != volume {
        if version < Microversion::UPDATE_TERMINATION {
            ctx.require("servers", "migrate")?;
        }
        attach::volume_of(&app.cloud, &ctx, &id, &volume).await?;
        return Err(Error::BadRequest(
            "Exchanging a volume for another one is not available in this cloud.".into(),
        )
        .into());
    }
    let goes = match new.get("delete_on_termination") {
        Some(value) => boolean_of(&new.path("delete_on_termination"), value)?,
        None => {
            return Err(
                Error::BadRequest("The volume that is named is the one that is attached.".into()).into(),
            );
        }
    };
    attach::keep_volume(&app.cloud, &ctx, &id, &volume, goes).await?;
    empty(StatusCode::ACCEPTED)
}

pub(super) async fn detach_volume(
    State(app): State<AppState>,
    Auth(ctx): Auth,
    Path((id, volume)): Path<(String, String)>,
) -> Answer {
    attach::detach_volume(&app.cloud, &ctx, &id, &volume).await?;
    empty(StatusCode::ACCEPTED)
}
