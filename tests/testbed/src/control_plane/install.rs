//! CustomResourceDefinitions, served and known to the garbage collector.

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};

use super::ControlPlane;
use super::ready::READY_TIMEOUT;

impl ControlPlane {
    /// Applies CustomResourceDefinitions and waits until each is served.
    ///
    /// The garbage collector looks for new kinds only every 30 s, so the controller manager starts again when one was new or changed.
    pub async fn install(&self, crds: &[CustomResourceDefinition]) -> Result<()> {
        // Tests that share the control plane must not restart the controller manager under each other.
        let _one_at_a_time = self.installing.lock().await;
        let mut changed = false;
        for crd in crds {
            changed |= self.install_one(crd).await?;
        }
        if changed && self.controller_manager.lock().is_some() {
            self.stop_controller_manager();
            self.start_controller_manager().await?;
        }
        Ok(())
    }

    /// Whether the definition was new or different.
    async fn install_one(&self, crd: &CustomResourceDefinition) -> Result<bool> {
        let name = crd.metadata.name.as_deref().context("the CustomResourceDefinition has no name")?;
        let crds: Api<CustomResourceDefinition> = Api::all(self.admin_client()?);
        let before = crds.get_opt(name).await?.and_then(|old| old.metadata.generation);
        let params = PatchParams::apply("testbed").force();
        let applied = crds.patch(name, &params, &Patch::Apply(crd)).await.with_context(|| format!("apply {name}"))?;
        let established =
            kube::runtime::wait::await_condition(crds, name, kube::runtime::conditions::is_crd_established());
        tokio::time::timeout(READY_TIMEOUT, established)
            .await
            .with_context(|| format!("{name} was not established"))??;
        Ok(before != applied.metadata.generation)
    }
}
