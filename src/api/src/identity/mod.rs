//! Keystone v3 under `/identity`.

mod assignments;
mod catalog;
mod credentials;
mod groups;
mod projects;
mod roles;
mod shape;
mod stored;
mod tokens;
mod users;
mod versions;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::AppState;
use crate::fault::{Fault, Service};

/// What a handler of this service returns.
type Answer = Result<Response, Refusal>;

/// Any error on its way out of this service.
struct Refusal(Fault);

impl From<cloud::Error> for Refusal {
    fn from(error: cloud::Error) -> Self {
        Refusal(Fault::new(Service::Identity, error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Routes below `/identity`.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/", get(versions::all))
        .route("/v3", get(versions::v3))
        .nest("/v3", v3())
}

fn v3() -> Router<AppState> {
    Router::new()
        .route(
            "/auth/tokens",
            post(tokens::issue).get(tokens::validate).delete(tokens::revoke),
        )
        .route("/auth/catalog", get(catalog::catalog))
        .route("/auth/projects", get(tokens::projects))
        .route("/auth/domains", get(tokens::domains))
        .route("/auth/system", get(tokens::system))
        .route(
            "/domains",
            get(projects::list_domains).post(projects::create_domain),
        )
        .route(
            "/domains/{id}",
            get(projects::show_domain)
                .patch(projects::update_domain)
                .delete(projects::delete_domain),
        )
        .route("/projects", get(projects::list).post(projects::create))
        .route(
            "/projects/{id}",
            get(projects::show)
                .patch(projects::update)
                .delete(projects::delete),
        )
        .route(
            "/projects/{id}/tags",
            get(projects::tags)
                .put(projects::set_tags)
                .delete(projects::clear_tags),
        )
        .route(
            "/projects/{id}/tags/{tag}",
            get(projects::has_tag)
                .put(projects::add_tag)
                .delete(projects::remove_tag),
        )
        .route("/users", get(users::list).post(users::create))
        .route(
            "/users/{id}",
            get(users::show).patch(users::update).delete(users::delete),
        )
        .route("/users/{id}/password", post(users::change_password))
        .route("/users/{id}/projects", get(users::projects))
        .route("/users/{id}/groups", get(users::groups))
        .route(
            "/users/{id}/application_credentials",
            get(credentials::list).post(credentials::create),
        )
        .route(
            "/users/{id}/application_credentials/{credential}",
            get(credentials::show).delete(credentials::delete),
        )
        .route("/credentials", get(stored::list).post(stored::create))
        .route(
            "/credentials/{id}",
            get(stored::show).patch(stored::update).delete(stored::delete),
        )
        .route(
            "/users/{id}/credentials/OS-EC2",
            get(stored::list_ec2).post(stored::create_ec2),
        )
        .route(
            "/users/{id}/credentials/OS-EC2/{access}",
            get(stored::show_ec2).delete(stored::delete_ec2),
        )
        .route("/groups", get(groups::list).post(groups::create))
        .route(
            "/groups/{id}",
            get(groups::show).patch(groups::update).delete(groups::delete),
        )
        .route("/groups/{id}/users", get(groups::members))
        .route(
            "/groups/{id}/users/{user}",
            get(groups::is_member)
                .put(groups::add_member)
                .delete(groups::remove_member),
        )
        .route("/roles", get(roles::list).post(roles::create))
        .route(
            "/roles/{id}",
            get(roles::show).patch(roles::update).delete(roles::delete),
        )
        .route("/roles/{id}/implies", get(roles::implied))
        .route(
            "/roles/{id}/implies/{implied}",
            get(roles::implies)
                .head(roles::is_implied)
                .put(roles::imply)
                .delete(roles::unimply),
        )
        .route("/role_inferences", get(roles::inferences))
        .route("/role_assignments", get(assignments::list))
        .merge(grants())
        .route("/regions", get(catalog::regions))
        .route("/regions/{id}", get(catalog::region))
        .route("/services", get(catalog::services))
        .route("/services/{id}", get(catalog::service))
        .route("/endpoints", get(catalog::endpoints))
        .route("/endpoints/{id}", get(catalog::endpoint))
}

/// Roles of a user or a group (`{actors}`) on a project or a domain (`{targets}`), or on the system.
fn grants() -> Router<AppState> {
    let one = || {
        get(assignments::check)
            .put(assignments::grant)
            .delete(assignments::revoke)
    };
    let mut router = Router::new();
    for targets in ["projects", "domains"] {
        for actors in ["users", "groups"] {
            let list = format!("/{targets}/{{target}}/{actors}/{{actor}}/roles");
            router = router
                .route(
                    &format!("/OS-INHERIT{list}/inherited_to_projects"),
                    get(assignments::roles_on),
                )
                .route(
                    &format!("/OS-INHERIT{list}/{{role}}/inherited_to_projects"),
                    one(),
                )
                .route(&format!("{list}/{{role}}"), one())
                .route(&list, get(assignments::roles_on));
        }
    }
    for actors in ["users", "groups"] {
        let list = format!("/system/{actors}/{{actor}}/roles");
        router = router
            .route(&format!("{list}/{{role}}"), one())
            .route(&list, get(assignments::roles_on));
    }
    router
}
