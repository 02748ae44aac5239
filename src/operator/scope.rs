//! What the flags of the scope mean: limits, and watches no wider than the permissions.

use std::sync::Arc;

use crate::cli::ScopeArgs;
use crate::controller::watches::{SecretScope, secret_scopes};
use crate::plan::Limits;
use crate::plan::scopes::AccountScope;

/// The limits. What AWS decides of them is left open.
pub(super) fn limits(flags: &ScopeArgs) -> Limits {
    Limits {
        region: None,
        secret_names: flags.allowed_names(),
        outputs: Some(flags.allowed_outputs()),
        includes: flags.allowed_includes(),
        namespaces: flags.allowed_namespaces(),
        identities: flags.allowed_identities(),
        attach_pods: flags.attach_pods,
        attach_service_accounts: flags.attachable(),
        fixed_api: false,
    }
}

/// One watch of Secrets for each name that may be written, in each allowed namespace.
pub(super) fn watched_secrets(flags: &ScopeArgs) -> Vec<SecretScope> {
    let outputs = flags.allowed_outputs();
    secret_scopes(flags.allowed_names().as_ref(), flags.allowed_namespaces().as_ref(), Some(&outputs))
}

/// One watch of ServiceAccounts for each allowed name in each allowed namespace.
pub(super) fn watched_service_accounts(flags: &ScopeArgs) -> Vec<AccountScope> {
    let namespaces: Vec<Option<Arc<str>>> =
        flags.allowed_namespaces().map_or_else(|| vec![None], |all| all.into_iter().map(Some).collect());
    let scopes = |name: Arc<str>| {
        namespaces.iter().cloned().map(move |namespace| AccountScope { namespace, name: name.clone() })
    };
    flags.attachable().into_iter().flat_map(scopes).collect()
}
