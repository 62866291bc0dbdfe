//! What makes another machine of a server, and what comes to it and leaves it; each version's part of it.

use serde_json::{Value, json};

use super::Api;

impl Api {
    async fn act(&self, version: &str, id: &str, action: Value) -> super::Reply {
        self.member(version, "POST", &format!("/servers/{id}/action"), Some(action))
            .await
    }

    async fn boot(&self, name: &str) -> (String, String) {
        let image = self.image().await;
        let id = self.server(&image, name, json!({})).await;
        self.until(&id, "ACTIVE").await;
        (image, id)
    }
}

#[tokio::test]
async fn a_server_is_resized_and_the_word_on_it_is_given_or_taken_back() {
    let api = Api::running().await;
    let (_, id) = api.boot("vm").await;
    for (version, flavor, status) in [
        ("2.1", json!(null), 400),
        ("2.1", json!("nothing"), 400),
        ("2.1", json!("SCS-1L-1"), 400),
    ] {
        let reply = api
            .act(version, &id, json!({"resize": {"flavorRef": flavor}}))
            .await;
        assert_eq!(reply.status.as_u16(), status, "{}", reply.body);
    }
    assert_eq!(
        api.act("2.1", &id, json!({"confirmResize": null})).await.status,
        409
    );
    let resize = json!({"resize": {"flavorRef": "SCS-1V-2"}});
    assert_eq!(api.act("2.1", &id, resize.clone()).await.status, 202);
    let server = api.until(&id, "VERIFY_RESIZE").await;
    assert_eq!(server["flavor"]["original_name"], "SCS-1V-2");
    assert_eq!(api.act("2.1", &id, resize.clone()).await.status, 409);
    let found = api.admin("2.80", "GET", "/os-migrations", None).await.body;
    assert_eq!(
        (
            &found["migrations"][0]["status"],
            &found["migrations"][0]["project_id"]
        ),
        (&json!("finished"), &json!(api.project))
    );
    assert_eq!(
        api.act("2.1", &id, json!({"revertResize": null})).await.status,
        202
    );
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["flavor"]["original_name"], "SCS-1L-1");
    assert_eq!(api.act("2.1", &id, resize).await.status, 202);
    api.until(&id, "VERIFY_RESIZE").await;
    assert_eq!(
        api.act("2.1", &id, json!({"confirmResize": null})).await.status,
        204
    );
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["flavor"]["original_name"], "SCS-1V-2");
}

#[tokio::test]
async fn a_rebuild_keeps_the_server_and_each_version_has_its_fields() {
    let api = Api::running().await;
    let (image, id) = api.boot("vm").await;
    for (field, value, from) in [
        ("description", json!("d"), 19),
        ("key_name", json!(null), 54),
        ("user_data", json!(null), 57),
        ("hostname", json!("abc"), 90),
    ] {
        let body = json!({"rebuild": {"imageRef": image, field: value}});
        let before = api.act(&format!("2.{}", from - 1), &id, body.clone()).await;
        assert_eq!(before.status, 400, "{field}");
        let after = api.act(&format!("2.{from}"), &id, body).await;
        assert_eq!(after.status, 202, "{field}: {}", after.body);
        api.until(&id, "ACTIVE").await;
    }
    let body =
        json!({"rebuild": {"imageRef": image, "name": "new", "metadata": {"a": "b"}, "adminPass": "secret"}});
    let reply = api.act("2.96", &id, body).await;
    assert_eq!(reply.status, 202, "{}", reply.body);
    let server = &reply.body["server"];
    assert_eq!(
        (
            &server["id"],
            &server["name"],
            &server["adminPass"],
            &server["status"]
        ),
        (&json!(id), &json!("new"), &json!("secret"), &json!("REBUILD"))
    );
    assert!(server.get("user_data").is_some());
    assert_eq!(api.until(&id, "ACTIVE").await["metadata"], json!({"a": "b"}));
    let gone = json!({"rebuild": {"imageRef": "70a599e0-31e7-49b7-b260-868f441e862b"}});
    assert_eq!(api.act("2.1", &id, gone).await.status, 400);
}

#[tokio::test]
async fn an_image_of_a_server_says_what_it_was_made_of() {
    let api = Api::running().await;
    let (image, id) = api.boot("vm").await;
    let body = json!({"createImage": {"name": "copy", "metadata": {"mine": "x"}}});
    let old = api.act("2.44", &id, body.clone()).await;
    assert_eq!(old.status, 202);
    let at = old.headers["location"].to_str().unwrap();
    assert!(at.contains("/image/v2/images/"), "{at}");
    api.until(&id, "ACTIVE").await;
    let copy = at.rsplit('/').next().unwrap();
    let shown = api.get("2.35", &format!("/images/{copy}")).await["image"].take();
    assert_eq!(
        (
            &shown["status"],
            &shown["server"]["id"],
            &shown["metadata"]["base_image_ref"]
        ),
        (&json!("ACTIVE"), &json!(id), &json!(image))
    );
    assert_eq!(shown["metadata"]["mine"], "x");
    assert_eq!(
        api.member("2.36", "GET", &format!("/images/{copy}"), None)
            .await
            .status,
        404
    );
    let new = api.act("2.45", &id, body).await;
    assert!(new.body["image_id"].is_string());
    api.until(&id, "ACTIVE").await;
    // A series keeps as many as it is told to.
    for _ in 0..3 {
        let backup = json!({"createBackup": {"name": "b", "backup_type": "daily", "rotation": 2}});
        assert_eq!(api.act("2.1", &id, backup).await.status, 202);
        api.until(&id, "ACTIVE").await;
    }
    let found = api.get("2.1", "/images/detail?type=backup").await;
    assert_eq!(found["images"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_is_rescued_and_shelved() {
    let api = Api::running().await;
    let (_, id) = api.boot("vm").await;
    let reply = api.act("2.1", &id, json!({"rescue": {"adminPass": "p"}})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body["adminPass"]),
        (200, &json!("p"))
    );
    api.until(&id, "RESCUE").await;
    assert_eq!(api.act("2.1", &id, json!({"rescue": null})).await.status, 409);
    assert_eq!(api.act("2.1", &id, json!({"unrescue": null})).await.status, 202);
    api.until(&id, "ACTIVE").await;
    assert_eq!(api.act("2.1", &id, json!({"shelve": null})).await.status, 202);
    api.until(&id, "SHELVED_OFFLOADED").await;
    let unshelve = |how: Value| json!({"unshelve": how});
    for (version, how) in [
        ("2.76", json!({"availability_zone": "nova"})),
        ("2.77", json!({"availability_zone": null})),
        ("2.77", json!({"availability_zone": 1})),
        ("2.77", json!({"availability_zone": "nowhere"})),
        ("2.90", json!({"host": "node1"})),
        ("2.91", json!({"host": null})),
        ("2.91", json!({"availability_zone": "nowhere"})),
    ] {
        let reply = api.act(version, &id, unshelve(how.clone())).await;
        assert_eq!(reply.status, 400, "{version} {how}");
    }
    let host = unshelve(json!({"host": "node1"}));
    assert_eq!(api.act("2.91", &id, host.clone()).await.status, 403);
    let path = format!("/servers/{id}/action");
    let elsewhere = unshelve(json!({"host": "elsewhere"}));
    let refused = api.admin("2.91", "POST", &path, Some(elsewhere)).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    assert_eq!(api.admin("2.91", "POST", &path, Some(host)).await.status, 202);
    api.until(&id, "ACTIVE").await;
    // The zone is the server's from then on, until it is told that any will do.
    for (version, how, pinned) in [
        ("2.77", json!({"availability_zone": "nova"}), json!("nova")),
        ("2.91", json!({}), json!("nova")),
        ("2.91", json!({"availability_zone": null}), json!(null)),
    ] {
        assert_eq!(api.act("2.1", &id, json!({"shelve": null})).await.status, 202);
        api.until(&id, "SHELVED_OFFLOADED").await;
        assert_eq!(api.act(version, &id, unshelve(how)).await.status, 202);
        api.until(&id, "ACTIVE").await;
        let shown = api.get("2.96", &format!("/servers/{id}")).await;
        assert_eq!(shown["server"]["pinned_availability_zone"], pinned);
    }
}

#[tokio::test]
async fn what_needs_another_node_or_an_agent_is_refused() {
    let api = Api::running().await;
    let (_, id) = api.boot("vm").await;
    for action in ["migrate", "evacuate", "os-migrateLive"] {
        assert_eq!(
            api.act("2.1", &id, json!({action: {}})).await.status,
            403,
            "{action}"
        );
        let path = format!("/servers/{id}/action");
        let reply = api.admin("2.1", "POST", &path, Some(json!({action: {}}))).await;
        assert_eq!(reply.status, 400, "{action}");
    }
    for action in ["changePassword", "suspend", "os-getVNCConsole"] {
        assert_eq!(
            api.act("2.1", &id, json!({action: {}})).await.status,
            400,
            "{action}"
        );
    }
    assert_eq!(api.act("2.1", &id, json!({"restore": null})).await.status, 409);
    assert_eq!(api.act("2.1", &id, json!({"nothing": null})).await.status, 400);
    for (path, from) in [("topology", 78), ("migrations", 23)] {
        let path = format!("/servers/{id}/{path}");
        assert_eq!(
            api.admin(&format!("2.{}", from - 1), "GET", &path, None)
                .await
                .status,
            404
        );
        assert_eq!(
            api.admin(&format!("2.{from}"), "GET", &path, None).await.status,
            200
        );
    }
}

#[tokio::test]
async fn a_locked_server_is_its_admins_alone() {
    let api = Api::running().await;
    let (image, id) = api.boot("vm").await;
    assert_eq!(
        api.act("2.73", &id, json!({"lock": {"locked_reason": "busy"}}))
            .await
            .status,
        202
    );
    let interface = format!("/servers/{id}/os-interface");
    let volume = format!("/servers/{id}/os-volume_attachments");
    let asked = json!({"volumeAttachment": {"volumeId": image}});
    assert_eq!(api.member("2.1", "POST", &volume, Some(asked)).await.status, 409);
    assert_eq!(
        api.member(
            "2.1",
            "POST",
            &interface,
            Some(json!({"interfaceAttachment": {}}))
        )
        .await
        .status,
        409
    );
    for action in [
        json!({"resize": {"flavorRef": "SCS-1V-2"}}),
        json!({"rebuild": {"imageRef": image}}),
        json!({"shelve": null}),
        json!({"rescue": null}),
        json!({"os-stop": null}),
    ] {
        assert_eq!(api.act("2.1", &id, action.clone()).await.status, 409, "{action}");
    }
    assert_eq!(api.act("2.1", &id, json!({"unlock": null})).await.status, 202);
}

#[tokio::test]
async fn interfaces_come_and_go() {
    let api = Api::running().await;
    let (_, id) = api.boot("vm").await;
    let network = api.network().await;
    let path = format!("/servers/{id}/os-interface");
    let tagged = json!({"interfaceAttachment": {"net_id": network, "tag": "t"}});
    assert_eq!(
        api.member("2.48", "POST", &path, Some(tagged.clone()))
            .await
            .status,
        400
    );
    let made = api.member("2.70", "POST", &path, Some(tagged)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    assert_eq!(made.body["interfaceAttachment"]["tag"], "t");
    let port = made.body["interfaceAttachment"]["port_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let one = format!("{path}/{port}");
    assert_eq!(
        api.get("2.1", &one).await["interfaceAttachment"]["net_id"],
        network
    );
    assert_eq!(api.member("2.1", "DELETE", &one, None).await.status, 202);
    let mut events = api.test.cloud.store.subscribe();
    while api.member("2.1", "GET", &one, None).await.status != 404 {
        events.recv().await.unwrap();
    }
    assert_eq!(api.member("2.1", "DELETE", &one, None).await.status, 404);
    for wrong in [
        json!({"interfaceAttachment": {"fixed_ips": [{"ip_address": "10.1.0.9"}]}}),
        json!({"interfaceAttachment": {"net_id": network, "port_id": port}}),
        json!({"interfaceAttachment": {"net_id": "x"}}),
        json!({}),
    ] {
        assert_eq!(api.member("2.1", "POST", &path, Some(wrong)).await.status, 400);
    }
}

#[tokio::test]
async fn the_window_on_security_groups_closes_with_2_36() {
    let api = Api::running().await;
    let body = json!({"security_group": {"name": "web", "description": "d"}});
    let path = "/os-security-groups";
    assert_eq!(
        api.member("2.36", "POST", path, Some(body.clone())).await.status,
        404
    );
    let made = api.member("2.35", "POST", path, Some(body)).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let id = made.body["security_group"]["id"].as_str().unwrap().to_owned();
    let rule = |extra: Value| {
        let mut rule = json!({"parent_group_id": id, "ip_protocol": "tcp", "from_port": 22, "to_port": 22});
        for (key, value) in extra.as_object().unwrap() {
            rule[key] = value.clone();
        }
        json!({"security_group_rule": rule})
    };
    let rules = "/os-security-group-rules";
    let made = api.member("2.1", "POST", rules, Some(rule(json!({})))).await;
    assert_eq!(
        (
            made.status.as_u16(),
            &made.body["security_group_rule"]["ip_range"]["cidr"]
        ),
        (200, &json!("0.0.0.0/0"))
    );
    for extra in [
        json!({}),
        json!({"ip_protocol": "x"}),
        json!({"from_port": 80}),
        json!({"to_port": 70_000}),
        json!({"cidr": "x"}),
        json!({"parent_group_id": "x"}),
    ] {
        let reply = api.member("2.1", "POST", rules, Some(rule(extra.clone()))).await;
        assert_eq!(reply.status, 400, "{extra}");
    }
    let shown = api.get("2.1", &format!("{path}/{id}")).await;
    assert_eq!(shown["security_group"]["rules"][0]["from_port"], 22);
    let rule = made.body["security_group_rule"]["id"].as_str().unwrap();
    assert_eq!(
        api.member("2.1", "DELETE", &format!("{rules}/{rule}"), None)
            .await
            .status,
        202
    );
    assert_eq!(
        api.member("2.1", "DELETE", &format!("{path}/{id}"), None)
            .await
            .status,
        202
    );
    assert_eq!(
        api.member("2.1", "GET", &format!("{path}/{id}"), None)
            .await
            .status,
        404
    );
}

#[tokio::test]
async fn aggregates_put_nodes_into_zones_and_quota_classes_hold_for_all() {
    let api = Api::running().await;
    let image = api.image().await;
    let body = json!({"aggregate": {"name": "a", "availability_zone": "west"}});
    assert_eq!(
        api.member("2.1", "POST", "/os-aggregates", Some(body.clone()))
            .await
            .status,
        403
    );
    let made = api
        .admin("2.41", "POST", "/os-aggregates", Some(body.clone()))
        .await;
    assert_eq!(made.status, 200, "{}", made.body);
    assert!(made.body["aggregate"]["uuid"].is_string());
    assert_eq!(
        api.admin("2.1", "POST", "/os-aggregates", Some(body))
            .await
            .status,
        409
    );
    let path = format!("/os-aggregates/{}", made.body["aggregate"]["id"]);
    let act = async |action: Value| {
        let path = format!("{path}/action");
        api.admin("2.1", "POST", &path, Some(action))
            .await
            .status
            .as_u16()
    };
    assert_eq!(act(json!({"add_host": {"host": "elsewhere"}})).await, 404);
    assert_eq!(act(json!({"add_host": {"host": "node1"}})).await, 200);
    assert_eq!(act(json!({"add_host": {"host": "node1"}})).await, 409);
    let zones = api.get("2.1", "/os-availability-zone").await;
    assert_eq!(zones["availabilityZoneInfo"][0]["zoneName"], "west");
    let id = api
        .server(&image, "vm", json!({"availability_zone": "west"}))
        .await;
    let server = api.until(&id, "ACTIVE").await;
    assert_eq!(server["OS-EXT-AZ:availability_zone"], "west");
    assert_eq!(
        act(json!({"set_metadata": {"metadata": {"availability_zone": "east"}}})).await,
        400
    );
    assert_eq!(act(json!({"set_metadata": {"metadata": {"k": "v"}}})).await, 200);
    assert_eq!(api.admin("2.1", "DELETE", &path, None).await.status, 400);
    assert_eq!(act(json!({"remove_host": {"host": "node1"}})).await, 200);
    assert_eq!(api.admin("2.1", "DELETE", &path, None).await.status, 200);

    let class = json!({"quota_class_set": {"instances": 7}});
    let reply = api
        .admin("2.57", "PUT", "/os-quota-class-sets/default", Some(class))
        .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let quotas = api.get("2.57", &format!("/os-quota-sets/{}", api.project)).await;
    assert_eq!(quotas["quota_set"]["instances"], 7);
}
