//! Whoever is no member of a project learns nothing of it, changes nothing in it, and builds nothing on it.
//!
//! Nothing here lists routes or ids: routes are those of the router, ids are all that the owner sees and the stranger
//! does not. Every id is put into every route with every method; what the owner asked for when making things, the
//! stranger asks for, too. A new route or resource is tested as soon as it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use regex::Regex;
use serde_json::json;

use super::*;

/// Microversions that show most.
const VERSIONS: &[(&str, &str)] = &[(
    "openstack-api-version",
    "compute 2.96, volume 3.71, placement 1.39",
)];

/// Owners' own views that no other request changes, but time does.
const VOLATILE: &[&str] = &[
    "/identity/v3/auth/tokens",
    "/metrics",
    "/healthz",
    "/compute/v2.1/os-simple-tenant-usage/{project}",
];

/// An id that nothing has.
const NOBODY: &str = "5f0e0d60a0f14d0dbb2a3f3a3a6d5c1e";

/// What is in a request that a project's member makes to have one of everything.
struct Owner<'a> {
    client: &'a Client,
    asked: Vec<(Method, String, String)>,
}

impl Owner<'_> {
    async fn ask(&mut self, method: Method, path: &str, body: Value) -> Value {
        let text = body.to_string();
        let answer = send(self.client, method.clone(), path, &text).await;
        assert!(
            answer.status.is_success(),
            "{method} {path}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.bytes)
        );
        self.asked.push((method, path.to_owned(), text));
        serde_json::from_slice(&answer.bytes).unwrap_or_default()
    }

    async fn post(&mut self, path: &str, body: Value) -> Value {
        self.ask(Method::POST, path, body).await
    }

    /// Makes a thing, and gives the id that its answer shows below its name.
    async fn make(&mut self, path: &str, name: &str, mut fields: Value) -> String {
        if fields.get("name").is_none() && name != "floatingip" && name != "security_group_rule" {
            fields["name"] = json!("mine");
        }
        let mut body = serde_json::Map::new();
        body.insert(name.to_owned(), fields);
        let answer = self.post(path, Value::Object(body)).await;
        answer[name]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{path}: {answer}"))
            .to_owned()
    }

    async fn wait(&self, path: &str, name: &str, wanted: &str) {
        for _ in 0..2000 {
            let answer = self.client.get(path).await.json();
            if answer[name]["status"] == *wanted {
                return;
            }
            assert_ne!(answer[name]["status"], "ERROR", "{answer}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{path} does not become {wanted}");
    }
}

async fn send(client: &Client, method: Method, path: &str, body: &str) -> Answer {
    let kind = if method == Method::PATCH && path.contains("/image/") {
        "application/openstack-images-v2.1-json-patch"
    } else {
        "application/json"
    };
    let mut headers = vec![("content-type", kind)];
    headers.extend(VERSIONS);
    client.send(method, path, &headers, body.to_owned()).await
}

/// One of everything that a member may have.
async fn furnish(owner: &mut Owner<'_>, project: &str, user: &str, external: &str) {
    let net = "/network/v2.0";
    let network = owner.make(&format!("{net}/networks"), "network", json!({})).await;
    let range = json!({"network_id": network, "ip_version": 4, "cidr": "10.0.0.0/24"});
    let subnet = owner.make(&format!("{net}/subnets"), "subnet", range).await;
    let group = owner
        .make(&format!("{net}/security-groups"), "security_group", json!({}))
        .await;
    let rule = json!({"security_group_id": group, "direction": "ingress", "remote_group_id": group});
    owner
        .make(
            &format!("{net}/security-group-rules"),
            "security_group_rule",
            rule,
        )
        .await;
    let port =
        json!({"network_id": network, "fixed_ips": [{"subnet_id": subnet}], "security_groups": [group]});
    let port = owner.make(&format!("{net}/ports"), "port", port).await;
    let gateway = json!({"external_gateway_info": {"network_id": external}});
    let router = owner.make(&format!("{net}/routers"), "router", gateway).await;
    let path = format!("{net}/routers/{router}/add_router_interface");
    owner.ask(Method::PUT, &path, json!({"subnet_id": subnet})).await;
    let floating = json!({"floating_network_id": external, "port_id": port});
    owner
        .make(&format!("{net}/floatingips"), "floatingip", floating)
        .await;
    let scope = owner
        .make(
            &format!("{net}/address-scopes"),
            "address_scope",
            json!({"ip_version": 4}),
        )
        .await;
    let pool = json!({"prefixes": ["10.9.0.0/16"], "address_scope_id": scope});
    let pool = owner
        .make(&format!("{net}/subnetpools"), "subnetpool", pool)
        .await;
    let second = owner
        .make(&format!("{net}/networks"), "network", json!({"name": "second"}))
        .await;
    let from = json!({"network_id": second, "ip_version": 4, "subnetpool_id": pool, "prefixlen": 24});
    owner.make(&format!("{net}/subnets"), "subnet", from).await;
    owner
        .ask(
            Method::PUT,
            &format!("{net}/networks/{network}/tags/mine"),
            json!({}),
        )
        .await;

    let image = json!({"name": "mine", "disk_format": "raw", "container_format": "bare"});
    let image = owner.post("/image/v2/images", image).await["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let file = format!("/image/v2/images/{image}/file");
    let kind = [("content-type", "application/octet-stream")];
    let sent = owner.client.send(Method::PUT, &file, &kind, vec![0; 4096]).await;
    assert_eq!(sent.status, 204);
    for _ in 0..2000 {
        if owner
            .client
            .get(&format!("/image/v2/images/{image}"))
            .await
            .json()["status"]
            == "active"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let v3 = format!("/volume/v3/{project}");
    let volume = owner
        .make(&format!("{v3}/volumes"), "volume", json!({"size": 1}))
        .await;
    owner
        .wait(&format!("{v3}/volumes/{volume}"), "volume", "available")
        .await;
    let snapshot = json!({"volume_id": volume});
    let snapshot = owner.make(&format!("{v3}/snapshots"), "snapshot", snapshot).await;
    owner
        .wait(&format!("{v3}/snapshots/{snapshot}"), "snapshot", "available")
        .await;
    let clone = json!({"size": 1, "snapshot_id": snapshot});
    let clone = owner.make(&format!("{v3}/volumes"), "volume", clone).await;
    owner
        .wait(&format!("{v3}/volumes/{clone}"), "volume", "available")
        .await;
    let backup = owner
        .make(&format!("{v3}/backups"), "backup", json!({"volume_id": volume}))
        .await;
    owner
        .wait(&format!("{v3}/backups/{backup}"), "backup", "available")
        .await;
    let transfer = json!({"volume_id": clone});
    owner
        .make(&format!("{v3}/os-volume-transfer"), "transfer", transfer)
        .await;

    let nova = "/compute/v2.1";
    owner
        .make(
            &format!("{nova}/os-server-groups"),
            "server_group",
            json!({"name": "mine", "policy": "anti-affinity"}),
        )
        .await;
    let server = json!({"imageRef": image, "flavorRef": "SCS-1L-1", "networks": [{"port": port}], "metadata": {"a": "b"}});
    let server = owner.make(&format!("{nova}/servers"), "server", server).await;
    owner
        .wait(&format!("{nova}/servers/{server}"), "server", "ACTIVE")
        .await;
    let path = format!("{nova}/servers/{server}/os-volume_attachments");
    let body = json!({"volumeAttachment": {"volumeId": volume}});
    owner.post(&path, body).await;
    owner
        .wait(&format!("{v3}/volumes/{volume}"), "volume", "in-use")
        .await;

    let secret = json!({"name": "mine", "payload": "secret", "payload_content_type": "text/plain"});
    let secret = owner.post("/key-manager/v1/secrets", secret).await["secret_ref"]
        .as_str()
        .unwrap()
        .to_owned();
    let container =
        json!({"name": "mine", "type": "generic", "secret_refs": [{"name": "a", "secret_ref": secret}]});
    owner.post("/key-manager/v1/containers", container).await;
    owner
        .make(
            &format!("/identity/v3/users/{user}/application_credentials"),
            "application_credential",
            json!({}),
        )
        .await;
}

/// The router's own paths.
fn paths() -> Vec<String> {
    let text = format!("{:?}", crate::services());
    let path = Regex::new(r#"RouteId\((\d+)\): "((?:[^"\\]|\\.)*)""#).unwrap();
    let found: BTreeSet<String> = path.captures_iter(&text).map(|c| c[2].to_owned()).collect();
    // Below /compute/v2/ is the service of /compute/v2.1/ under its older name.
    found
        .into_iter()
        .filter(|p| !p.contains("{*") && !p.starts_with("/compute/v2/"))
        .collect()
}

/// Everything in a text that has the shape of an id.
fn ids(text: &str) -> BTreeSet<String> {
    let id = Regex::new(r"\b(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})\b").unwrap();
    id.find_iter(text).map(|m| m.as_str().to_owned()).collect()
}

fn parameters(path: &str) -> usize {
    path.matches('{').count()
}

fn fill(path: &str, values: &[&str]) -> String {
    let mut parts = path.split('{');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for (part, value) in parts.zip(values) {
        text += value;
        text += part.split_once('}').map_or("", |(_, rest)| rest);
    }
    text
}

/// A client's whole view: what each path without parameters, and each with one id of its own, answers it.
async fn view(
    client: &Client,
    paths: &[String],
    known: Option<&BTreeSet<String>>,
) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for path in paths.iter().filter(|p| !VOLATILE.contains(&p.as_str())) {
        let targets: Vec<String> = match (parameters(path), known) {
            (0, _) => vec![path.clone()],
            (1, Some(known)) => known.iter().map(|id| fill(path, &[id])).collect(),
            (2, Some(known)) if path.contains("{project_id}") || path.contains("/volume/v3/{") => {
                let project = known.iter().find(|id| id.len() == 32);
                let project = project.cloned().unwrap_or_default();
                known.iter().map(|id| fill(path, &[&project, id])).collect()
            }
            _ => Vec::new(),
        };
        for target in targets {
            let answer = send(client, Method::GET, &target, "").await;
            if answer.status.is_success() {
                seen.insert(target, String::from_utf8_lossy(&answer.bytes).into_owned());
            }
        }
    }
    seen
}

/// Bodies that a route might take: what it is asked to change is only the name, or what an action is called.
fn bodies(method: &Method, path: &str) -> Vec<String> {
    if matches!(*method, Method::GET | Method::DELETE) {
        return vec![String::new()];
    }
    let named: Vec<&str> = path.split('/').filter(|p| !p.starts_with('{')).collect();
    let last = named.last().copied().unwrap_or_default();
    if last == "action" {
        let actions = [
            "os-start",
            "os-stop",
            "reboot",
            "lock",
            "unlock",
            "pause",
            "unpause",
            "os-getConsoleOutput",
            "rebuild",
            "resize",
            "confirmResize",
            "revertResize",
            "createImage",
            "addSecurityGroup",
            "removeSecurityGroup",
            "shelve",
            "unshelve",
            "rescue",
            "suspend",
            "resume",
            "forceDelete",
            "restore",
            "os-resetState",
            "os-extend",
            "os-set_bootable",
            "os-update_readonly_flag",
            "os-volume_upload_image",
            "os-attach",
            "os-detach",
            "os-begin_detaching",
            "os-reserve",
            "os-unreserve",
            "os-force_delete",
            "os-reset_status",
            "os-retype",
            "os-set_image_metadata",
            "os-unmanage",
        ];
        return actions
            .iter()
            .map(|a| {
                let of = match *a {
                    "reboot" => json!({"type": "HARD"}),
                    "os-extend" => json!({"new_size": 2}),
                    "os-set_bootable" => json!({"bootable": true}),
                    "os-update_readonly_flag" => json!({"readonly": true}),
                    "createImage" => json!({"name": "stolen"}),
                    "resize" => json!({"flavorRef": "SCS-1V-2"}),
                    "os-volume_upload_image" => json!({"image_name": "stolen"}),
                    "os-getConsoleOutput" | "os-force_delete" | "os-attach" | "os-detach" => json!({}),
                    "addSecurityGroup" | "removeSecurityGroup" => json!({"name": "default"}),
                    "os-reset_status" => json!({"status": "error"}),
                    _ => Value::Null,
                };
                json!({*a: of}).to_string()
            })
            .collect();
    }
    let one = last.trim_end_matches('s').replace('-', "_");
    let change = json!({"name": "stolen", "description": "stolen"});
    let mut bodies = vec![
        "{}".to_owned(),
        change.to_string(),
        json!({one: change}).to_string(),
        json!({"metadata": {"stolen": "1"}}).to_string(),
        json!({"tags": ["stolen"]}).to_string(),
    ];
    if *method == Method::PATCH {
        bodies.push(json!([{"op": "replace", "path": "/name", "value": "stolen"}]).to_string());
    }
    bodies
}

/// The methods that a path takes.
async fn served(client: &Client, path: &str) -> Vec<Method> {
    let mut served = Vec::new();
    for method in [
        Method::GET,
        Method::PUT,
        Method::PATCH,
        Method::POST,
        Method::DELETE,
    ] {
        if send(client, method.clone(), path, "{}").await.status != 405 {
            served.push(method);
        }
    }
    served
}

/// Everything that a stranger tries with one target, and what is wrong with the answers.
async fn try_all(
    stranger: &Client,
    methods: &[Method],
    target: &str,
    unknown: &str,
    private: &BTreeSet<String>,
) -> (u32, Vec<String>) {
    let mut wrong = Vec::new();
    let mut requests = 0;
    for method in methods {
        for body in bodies(method, target) {
            let answer = send(stranger, method.clone(), target, &body).await;
            requests += 1;
            let text = String::from_utf8_lossy(&answer.bytes);
            let told = leaked(private, &text, &format!("{target}{body}"));
            if answer.status.is_client_error() && told.is_empty() {
                continue;
            }
            // What is said of an id that nobody has, may be said of this one.
            let of_nobody = send(stranger, method.clone(), unknown, &body).await;
            let expected = String::from_utf8_lossy(&of_nobody.bytes).replace(NOBODY, "");
            let same = private
                .iter()
                .fold(text.to_string(), |text, id| text.replace(id, ""));
            if *method != Method::GET || answer.status != of_nobody.status || same != expected {
                wrong.push(format!("{method} {target} {body}: {} {text}", answer.status));
            }
        }
    }
    (requests, wrong)
}

/// Which of these ids an answer tells without having been told.
fn leaked(private: &BTreeSet<String>, said: &str, sent: &str) -> Vec<String> {
    let own = ids(sent);
    ids(said)
        .into_iter()
        .filter(|id| private.contains(id) && !own.contains(id))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_reads_and_changes_nothing() {
    let test = cloud().await;
    cloud::network::bootstrap(&test.cloud).await.unwrap();
    cloud::network::spawn(test.cloud.clone());
    cloud::image::spawn(test.cloud.clone());
    cloud::volume::spawn(test.cloud.clone());
    cloud::compute::spawn(test.cloud.clone());
    let client = |token: String| Client {
        token: Some(token),
        ..Client::nobody(&test)
    };
    let mia = client(test.token("mia", "shop", "member").await);
    let stranger = client(test.token("rob", "other", "member").await);
    let context = test.context("mia", "shop", "member").await;
    let (project, user) = (context.project().unwrap().to_owned(), context.user_id.clone());
    let theirs = test.context("rob", "other", "member").await;
    let their_project = theirs.project().unwrap().to_owned();
    let networks = mia.get("/network/v2.0/networks?name=ext-net").await.json();
    let external = networks["networks"][0]["id"].as_str().unwrap().to_owned();

    let mut owner = Owner {
        client: &mia,
        asked: Vec::new(),
    };
    furnish(&mut owner, &project, &user, &external).await;
    let asked = owner.asked;

    let paths = paths();
    assert!(paths.len() > 200, "{} paths: {paths:?}", paths.len());
    // What only the owner sees.
    let shallow =
        |seen: &BTreeMap<String, String>| seen.values().flat_map(|t| ids(t)).collect::<BTreeSet<_>>();
    let all = shallow(&view(&mia, &paths, Some(&BTreeSet::from([project.clone()]))).await);
    let common = shallow(&view(&stranger, &paths, Some(&BTreeSet::from([their_project.clone()]))).await);
    let mut private: BTreeSet<String> = all.difference(&common).cloned().collect();
    private.extend([project.clone(), user.clone()]);
    assert!(private.len() > 20, "{private:?}");
    let before = view(&mia, &paths, Some(&private)).await;

    let mut wrong = Vec::new();
    let mut requests = 0_u32;
    // Lists.
    for path in paths.iter().filter(|p| parameters(p) == 0) {
        let answer = send(&stranger, Method::GET, path, "").await;
        let told = leaked(&private, &String::from_utf8_lossy(&answer.bytes), "");
        if !told.is_empty() || answer.status.is_server_error() {
            wrong.push(format!("GET {path}: {} tells {told:?}", answer.status));
        }
    }
    // Every id in every place of every route.
    let mut targets = Vec::new();
    for path in paths.iter().filter(|p| parameters(p) > 0) {
        let methods = served(&stranger, &fill(path, &vec![NOBODY; parameters(path)])).await;
        for id in &private {
            let fills: Vec<Vec<&str>> = match (path.starts_with("/volume/v3/{"), parameters(path)) {
                (true, 2) => vec![vec![&their_project, id], vec![&project, id]],
                (true, 3) => vec![vec![&their_project, id, id]],
                (false, 2) => vec![vec![id, id], vec![id, "stolen"]],
                (_, n) => vec![vec![id; n]],
            };
            for values in fills {
                let unknown: Vec<&str> = values.iter().map(|v| if v == id { NOBODY } else { *v }).collect();
                targets.push((methods.clone(), fill(path, &values), fill(path, &unknown)));
            }
        }
    }
    let tried: Vec<_> = futures::stream::iter(targets)
        .map(|(methods, target, unknown)| {
            let (stranger, private) = (stranger.clone(), private.clone());
            tokio::spawn(async move { try_all(&stranger, &methods, &target, &unknown, &private).await })
        })
        .buffer_unordered(8)
        .collect()
        .await;
    for tried in tried {
        let (count, errors) = tried.unwrap();
        requests += count;
        wrong.extend(errors);
    }
    // What the owner built on its own things, a stranger cannot.
    for (method, path, body) in asked {
        if ids(&format!("{path}{body}")).is_disjoint(&private) {
            continue;
        }
        let path = path.replace(
            &format!("/volume/v3/{project}"),
            &format!("/volume/v3/{their_project}"),
        );
        if ids(&format!("{path}{body}")).is_disjoint(&private) {
            continue;
        }
        let answer = send(&stranger, method.clone(), &path, &body).await;
        if !answer.status.is_client_error() {
            let text = String::from_utf8_lossy(&answer.bytes);
            wrong.push(format!("{method} {path} {body}: {} {text}", answer.status));
        }
    }
    let after = view(&mia, &paths, Some(&private)).await;
    for (path, text) in &before {
        if after.get(path) != Some(text) {
            let now = after.get(path).map_or("nothing", String::as_str);
            wrong.push(format!("the owner saw at {path}: {text}, and sees now: {now}"));
        }
    }
    println!(
        "{requests} requests, {} ids, {} paths",
        private.len(),
        paths.len()
    );
    assert!(requests > 20_000, "{requests} requests");
    let count = wrong.len();
    wrong.truncate(40);
    assert!(wrong.is_empty(), "{count} of {requests}:\n{}", wrong.join("\n"));
}
