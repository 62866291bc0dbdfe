//! Servers.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::Api;

#[tokio::test]
async fn a_server_from_creation_to_deletion() {
    let api = Api::running().await;
    let image = api.image().await;
    let network = Request::post("/network/v2.0/networks")
        .header("x-auth-token", &api.member)
        .header("content-type", "application/json")
        .body(Body::from(json!({"network": {"name": "net"}}).to_string()))
        .unwrap();
    let network = api.send(network).await.body["network"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let subnet = json!({"subnet": {"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4}});
    let subnet = Request::post("/network/v2.0/subnets")
        .header("x-auth-token", &api.member)
        .header("content-type", "application/json")
        .body(Body::from(subnet.to_string()))
        .unwrap();
    assert_eq!(api.send(subnet).await.status, 201);
    let body = json!({"server": {"name": "web", "imageRef": image, "flavorRef": "SCS-1L-1",
        "networks": [{"uuid": network}], "metadata": {"a": "b"}, "tags": ["t"], "description": "d",
        "user_data": "IyEvYmluL3NoCg==", "config_drive": true, "security_groups": [{"name": "default"}]}});
    let made = api.member("2.96", "POST", "/servers", Some(body)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    let id = made.body["server"]["id"].as_str().unwrap().to_owned();
    assert!(
        made.headers["location"]
            .to_str()
            .unwrap()
            .ends_with(&format!("/compute/v2.1/servers/{id}"))
    );
    assert_eq!(made.body["server"]["adminPass"].as_str().unwrap().len(), 12);
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["addresses"]["net"][0]["OS-EXT-IPS:type"], "fixed");
    assert_eq!(server["addresses"]["net"][0]["version"], 4);
    assert_eq!(server["security_groups"], json!([{"name": "default"}]));
    assert_eq!(server["config_drive"], "True");
    assert_eq!(server["flavor"]["original_name"], "SCS-1L-1");
    assert_eq!(server["image"]["id"], image);
    assert_eq!(server["hostId"].as_str().unwrap().len(), 56);
    assert_eq!(server["OS-EXT-SRV-ATTR:hostname"], "web");
    assert!(server.get("OS-EXT-SRV-ATTR:host").is_none());
    let shown = api
        .admin("2.3", "GET", &format!("/servers/{id}"), None)
        .await
        .body["server"]
        .take();
    assert_eq!(shown["OS-EXT-SRV-ATTR:host"], "node1");
    assert_eq!(shown["OS-EXT-SRV-ATTR:user_data"], "IyEvYmluL3NoCg==");
    assert_eq!(shown["flavor"]["id"], "SCS-1L-1");
    for key in [
        "locked",
        "description",
        "tags",
        "locked_reason",
        "pinned_availability_zone",
        "host_status",
    ] {
        assert!(shown.get(key).is_none(), "{key}");
    }
    // What the machine was given.
    let uuid: uuid::Uuid = id.parse().unwrap();
    let machine = api.test.drivers.state().machines[&uuid].0.clone();
    assert_eq!(
        (
            machine.vcpus,
            machine.memory_mib,
            machine.nics.len(),
            machine.disks.len()
        ),
        (1, 1024, 1, 1)
    );
    assert_eq!(machine.disks[0].size, 1 << 30);
    let paths: Vec<&str> = machine.config_drive.iter().map(|f| f.path.as_str()).collect();
    assert!(
        paths.contains(&"openstack/latest/meta_data.json") && paths.contains(&"openstack/latest/user_data")
    );
    // Parts.
    assert_eq!(
        api.get("2.1", &format!("/servers/{id}/metadata/a")).await,
        json!({"meta": {"a": "b"}})
    );
    assert_eq!(
        api.get("2.26", &format!("/servers/{id}/tags")).await,
        json!({"tags": ["t"]})
    );
    assert_eq!(
        api.member("2.25", "GET", &format!("/servers/{id}/tags"), None)
            .await
            .status,
        404
    );
    assert_eq!(
        api.member("2.26", "PUT", &format!("/servers/{id}/tags/u"), None)
            .await
            .status,
        201
    );
    assert_eq!(
        api.member("2.26", "PUT", &format!("/servers/{id}/tags/u"), None)
            .await
            .status,
        204
    );
    let ports = api.get("2.96", &format!("/servers/{id}/os-interface")).await;
    assert_eq!(ports["interfaceAttachments"][0]["net_id"], network);
    assert_eq!(
        api.get("2.1", &format!("/servers/{id}/ips/net")).await["net"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        api.get("2.1", &format!("/servers/{id}/os-security-groups")).await["security_groups"][0]["name"],
        "default"
    );
    // Actions.
    let act = |body: Value| {
        let path = format!("/servers/{id}/action");
        let api = &api;
        async move { api.member("2.96", "POST", &path, Some(body)).await }
    };
    assert_eq!(act(json!({"os-stop": null})).await.status, 202);
    let off = api.until(&id, "SHUTOFF").await;
    assert_eq!(off["OS-EXT-STS:power_state"], 4);
    let refused = act(json!({"os-stop": null})).await;
    assert_eq!(refused.status, 409);
    assert_eq!(
        refused.body["conflictingRequest"]["message"],
        format!("Cannot 'stop' instance {id} while it is in vm_state stopped")
    );
    assert_eq!(act(json!({"os-start": null})).await.status, 202);
    api.until(&id, "ACTIVE").await;
    assert_eq!(act(json!({"reboot": {"type": "SOFT"}})).await.status, 202);
    api.until(&id, "ACTIVE").await;
    let log = act(json!({"os-getConsoleOutput": {"length": 1}})).await;
    assert_eq!(log.body["output"], "login: ");
    for (body, status) in [
        (json!({"reboot": {"type": "WARM"}}), 400),
        (json!({"reboot": {}}), 400),
        (json!({"dance": null}), 400),
        (json!({}), 400),
        (json!({"os-start": null, "os-stop": null}), 400),
        (json!({"addFloatingIp": {"address": "203.0.113.9"}}), 404),
        (json!({"createImage": {"name": ""}}), 400),
        (json!({"os-resetState": {"state": "error"}}), 403),
        (json!({"os-getConsoleOutput": {"length": "x"}}), 400),
    ] {
        assert_eq!(act(body.clone()).await.status, status, "{body}");
    }
    let history = api
        .get("2.96", &format!("/servers/{id}/os-instance-actions"))
        .await;
    let names: Vec<_> = history["instanceActions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["action"].clone())
        .collect();
    assert_eq!(names, ["reboot", "start", "stop", "create"]);
    let request = history["instanceActions"][3]["request_id"].as_str().unwrap();
    let entry = api
        .get("2.96", &format!("/servers/{id}/os-instance-actions/{request}"))
        .await;
    assert_eq!(entry["instanceAction"]["events"][0]["result"], "Success");
    // Another project's member does not see it; a reader sees, but does not touch.
    let stranger = api.test.token("sam", "other", "member").await;
    assert_eq!(
        api.ask(&stranger, "2.1", "GET", &format!("/servers/{id}"), None)
            .await
            .status,
        404
    );
    assert_eq!(
        api.ask(&stranger, "2.1", "DELETE", &format!("/servers/{id}"), None)
            .await
            .status,
        404
    );
    assert_eq!(
        api.ask(&api.reader, "2.1", "GET", &format!("/servers/{id}"), None)
            .await
            .status,
        200
    );
    assert_eq!(
        api.ask(&api.reader, "2.1", "DELETE", &format!("/servers/{id}"), None)
            .await
            .status,
        403
    );
    // The end.
    let mut events = api.test.cloud.store.subscribe();
    assert_eq!(
        api.member("2.1", "DELETE", &format!("/servers/{id}"), None)
            .await
            .status,
        204
    );
    let gone = loop {
        let reply = api.member("2.1", "GET", &format!("/servers/{id}"), None).await;
        if reply.status != 200 {
            break reply;
        }
        let _ = events.recv().await;
    };
    let message = format!("Instance {id} could not be found.");
    assert_eq!(
        gone.body,
        json!({"itemNotFound": {"code": 404, "message": message}})
    );
    let ports = Request::get(format!("/network/v2.0/ports?device_id={id}"))
        .header("x-auth-token", &api.member)
        .body(Body::empty())
        .unwrap();
    assert_eq!(api.send(ports).await.body["ports"], json!([]));
    let deleted = api
        .admin("2.1", "GET", "/servers/detail?deleted=True&all_tenants=1", None)
        .await;
    assert_eq!(deleted.body["servers"][0]["status"], "DELETED");
}

#[tokio::test]
async fn lists_are_filtered_sorted_and_cut() {
    let api = Api::running().await;
    let image = api.image().await;
    let mut ids = Vec::new();
    for name in ["alpha", "beta", "gamma"] {
        let id = api.server(&image, name, json!({"tags": [name, "all"]})).await;
        api.until(&id, "ACTIVE").await;
        ids.push(id);
    }
    let names = |list: &Value| -> Vec<String> {
        list["servers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap().to_owned())
            .collect()
    };
    for (query, expected) in [
        ("", vec!["gamma", "beta", "alpha"]),
        ("?name=^al", vec!["alpha"]),
        ("?name=ET", vec!["beta"]),
        ("?status=ACTIVE", vec!["gamma", "beta", "alpha"]),
        ("?status=SHUTOFF", vec![]),
        (
            "?sort_key=display_name&sort_dir=asc",
            vec!["alpha", "beta", "gamma"],
        ),
        (
            "?sort_key=display_name&sort_dir=asc&limit=2",
            vec!["alpha", "beta"],
        ),
        ("?tags=all,beta", vec!["beta"]),
        ("?tags-any=alpha,beta", vec!["beta", "alpha"]),
        ("?not-tags-any=alpha,beta", vec!["gamma"]),
        ("?flavor=SCS-1L-1", vec!["gamma", "beta", "alpha"]),
        ("?flavor=other", vec![]),
        (
            "?changes-since=2001-01-01T00:00:00Z",
            vec!["gamma", "beta", "alpha"],
        ),
        ("?changes-since=2199-01-01T00:00:00Z", vec![]),
        ("?locked=true", vec![]),
        ("?deleted=False", vec!["gamma", "beta", "alpha"]),
        ("?vm_state=active&task_state=spawning", vec![]),
    ] {
        assert_eq!(
            names(&api.get("2.96", &format!("/servers/detail{query}")).await),
            expected,
            "{query}"
        );
    }
    let mut path = "/servers?limit=1".to_owned();
    let mut walked = Vec::new();
    loop {
        let page = api.get("2.1", &path).await;
        walked.extend(names(&page));
        let Some(next) = page["servers_links"][0]["href"].as_str() else {
            break;
        };
        path = next.split_once("/compute/v2.1").unwrap().1.to_owned();
    }
    assert_eq!(walked, ["gamma", "beta", "alpha"]);
    for (version, query, status) in [
        ("2.1", "?status=NONSENSE", 200),
        ("2.38", "?status=NONSENSE", 400),
        ("2.1", "?bogus=1", 200),
        ("2.75", "?bogus=1", 400),
        ("2.1", "?limit=-1", 400),
        ("2.1", "?marker=nothing", 400),
        ("2.1", "?name=[", 400),
        ("2.1", "?changes-since=yesterday", 400),
        ("2.1", "?sort_key=bogus", 400),
        ("2.1", "?all_tenants=1", 403),
        ("2.1", "?all_tenants=False", 200),
        ("2.1", "?status=DELETED", 403),
    ] {
        let reply = api
            .member(version, "GET", &format!("/servers/detail{query}"), None)
            .await;
        assert_eq!(reply.status, status, "{version} {query}");
    }
    assert_eq!(
        names(&api.admin("2.1", "GET", "/servers", None).await.body),
        Vec::<String>::new()
    );
    assert_eq!(
        names(&api.admin("2.1", "GET", "/servers?all_tenants=1", None).await.body).len(),
        3
    );
    // A project alone does not widen the view.
    let path = format!("/servers?tenant_id={}", api.project);
    assert_eq!(names(&api.admin("2.1", "GET", &path, None).await.body).len(), 0);
    let path = format!("/servers?all_tenants=1&tenant_id={}", api.project);
    assert_eq!(names(&api.admin("2.1", "GET", &path, None).await.body).len(), 3);
}

#[tokio::test]
async fn what_a_server_cannot_be_made_of_is_a_400() {
    let api = Api::new().await;
    let image = api.image().await;
    let nothing = uuid::Uuid::new_v4();
    for (change, text) in [
        (
            json!({"flavorRef": "nothing"}),
            "Flavor nothing could not be found.",
        ),
        (json!({"imageRef": nothing}), "Can not find requested image"),
        (json!({"key_name": "nothing"}), "Invalid key_name provided."),
        (json!({"networks": [{"uuid": nothing}]}), "could not be found"),
        (json!({"networks": [{"port": nothing}]}), "could not be found"),
        (json!({"security_groups": [{"name": "nothing"}]}), "nothing"),
        (
            json!({"availability_zone": "mars"}),
            "The requested availability zone is not available",
        ),
        (json!({"networks": "auto"}), "network"),
    ] {
        let mut server = json!({"name": "x", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none"});
        for (key, value) in change.as_object().unwrap() {
            server[key] = value.clone();
        }
        let reply = api
            .member("2.96", "POST", "/servers", Some(json!({"server": server})))
            .await;
        assert_eq!(reply.status, 400, "{change}: {}", reply.body);
        let message = reply.body["badRequest"]["message"].as_str().unwrap();
        assert!(message.contains(text), "{change}: {message}");
    }
    let host = json!({"server": {"name": "x", "imageRef": image, "flavorRef": "SCS-1L-1", "networks": "none",
        "host": "node1"}});
    assert_eq!(
        api.member("2.74", "POST", "/servers", Some(host)).await.status,
        403
    );
    assert!(
        api.get("2.1", "/servers").await["servers"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_long_list_says_of_each_server_what_the_server_says() {
    let api = Api::running().await;
    let image = api.image().await;
    let post = |path: &str, body: Value| {
        Request::post(format!("/network/v2.0{path}"))
            .header("x-auth-token", &api.member)
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap()
    };
    let network = api
        .send(post("/networks", json!({"network": {"name": "net"}})))
        .await;
    let network = network.body["network"]["id"].clone();
    let subnet = json!({"subnet": {"network_id": network, "cidr": "10.1.0.0/24", "ip_version": 4}});
    assert_eq!(api.send(post("/subnets", subnet)).await.status, 201);
    let mut ids = Vec::new();
    for number in 0..10 {
        let networks = if number == 0 {
            json!("none")
        } else {
            json!([{"uuid": network}])
        };
        ids.push(
            api.server(
                &image,
                &format!("s{number}"),
                json!({"networks": networks, "user_data": "YQ=="}),
            )
            .await,
        );
    }
    for id in &ids {
        api.until(id, "ACTIVE").await;
    }
    let path = format!("/servers/detail?all_tenants=1&tenant_id={}", api.project);
    let list = api.admin("2.70", "GET", &path, None).await.body;
    let list = list["servers"].as_array().unwrap();
    assert_eq!(list.len(), 10);
    for server in list {
        let id = server["id"].as_str().unwrap();
        let shown = api
            .admin("2.70", "GET", &format!("/servers/{id}"), None)
            .await
            .body;
        assert_eq!(*server, shown["server"]);
        let addresses = server["addresses"]["net"].as_array().map_or(0, Vec::len);
        assert_eq!(addresses, usize::from(server["name"] != "s0"));
    }
    let brief = api.get("2.70", "/servers").await;
    assert_eq!(brief["servers"].as_array().unwrap().len(), 10);
}
