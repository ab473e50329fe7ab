//! Loads a model when a job for it waits that nobody serves, if the configuration wants that.
//!
//! Of all workers that know the model, the first by id acts, so that it is loaded once; it asks like anybody else, and
//! whoever has the most room loads it. Nothing is unloaded for it: where there is no room the job waits on. A model that
//! failed is left alone until a person has looked at it.

use std::time::Duration;

use schemas::models::{Change, ChangeModels, KnownModel, ModelState};

use super::Models;

/// How often waiting jobs are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Models {
    /// Looks until the soft token falls.
    pub(crate) async fn load_on_demand(self) {
        let soft = self.service.runtime.tasks.soft();
        while soft.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let known = |model: &&KnownModel| model.kind == "chat" && model.state == ModelState::Known;
            let state = self.announced.borrow().state.clone();
            for model in state.models.iter().filter(known) {
                if self.is_wanted(&model.name).await {
                    self.load_for_jobs(&model.name).await;
                }
            }
        }
    }

    async fn is_wanted(&self, model: &str) -> bool {
        match self.service.runtime.bus.has_inference_job(model).await {
            Ok(waits) => waits,
            Err(error) => {
                tracing::debug!(model, %error, "the queue did not say whether a job waits");
                false
            }
        }
    }

    async fn load_for_jobs(&self, model: &str) {
        let peers = self.peers().await;
        let mut knowing = peers.iter().filter_map(|(id, state)| {
            let known = state.models.iter().find(|known| known.name == model)?;
            Some((id, &known.state))
        });
        if knowing.clone().any(|(_, state)| *state != ModelState::Known) {
            return;
        }
        if knowing.any(|(id, _)| *id < self.service.id) {
            return;
        }
        let change = Change::Load { model: model.to_owned() };
        match self.arrange(ChangeModels { change, worker: None }).await {
            Ok(_) => tracing::info!(model, "is loaded because a job waits for it"),
            Err(refusal) => tracing::debug!(model, why = refusal.detail, "a job waits for a model that is not loaded"),
        }
    }
}
