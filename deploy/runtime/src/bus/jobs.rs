//! Job queues: publish a job once, pull one for each free slot, keep it while working, and end with a verdict.

use std::marker::PhantomData;
use std::time::Duration;

use async_nats::jetstream::stream::DeleteMessageErrorKind;
use async_nats::{Client, Message};
use schemas::dead_letter::Reason;
use schemas::job::Job;
use schemas::presence::{Hold, Holds};
use schemas::wire::{DecodeError, decode, encode};
use schemas::{stream, subject};

use super::dead_letters::TERMINATED;
use super::log::{headers, place_of_reply};
use super::pull::Pull;
use super::{Bus, Error, REPLY_TIMEOUT, publish, request};

/// How long one pull waits for a job.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// How long a message that is no job waits when it could not be quarantined.
const QUARANTINE_RETRY: Duration = Duration::from_secs(1);
/// How often a held job says that it is being worked on: a third of the time after which it is handed out again.
const PROGRESS_EVERY: Duration = Duration::from_millis(stream::JOB_ACK_WAIT.as_millis() as u64 / 3);

/// A queued job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Its sequence in the queue's stream.
    pub sequence: u64,
    /// It was queued already.
    pub duplicate: bool,
}

/// How far the jobs of a queue have been handed to workers.
#[derive(Clone, Debug)]
pub struct JobProgress {
    /// Sequence of the newest job.
    last: u64,
    /// What each consumer takes, and the newest job that it handed out.
    delivered: Vec<(String, u64)>,
}

impl JobProgress {
    /// Whether a job is no longer waiting: some worker was given it (it may still be unfinished), or it is gone with a
    /// server that kept it in memory. A job for which no worker ever came waits.
    #[must_use]
    pub fn handed_out(&self, subject: &str, sequence: u64) -> bool {
        let taken = |(filter, upto): &(String, u64)| {
            sequence <= *upto
                && filter.strip_suffix('>').map_or(filter == subject, |prefix| subject.starts_with(prefix))
        };
        sequence > self.last || self.delivered.iter().any(taken)
    }
}

impl Bus {
    /// Queues a job once per attempt.
    ///
    /// # Errors
    /// [`Error::Full`] when the queue takes nothing more; otherwise when it is not known to be queued.
    pub async fn queue<J: Job>(&self, job: &J) -> Result<Queued, Error> {
        let headers = headers(Some(J::SCHEMA), &job.message_id(), job.trace());
        let ack = publish(&self.jobs, job.subject(), headers, encode(job).into()).await?;
        Ok(Queued { sequence: ack.seq, duplicate: ack.duplicate })
    }

    /// Takes a job that nobody wants any more out of its queue. A job that is gone already is no error.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn unqueue(&self, stream: &str, sequence: u64) -> Result<(), Error> {
        let stream = self.js.get_stream_no_info(stream).await.map_err(Error::broken)?;
        match stream.delete_message(sequence).await {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.kind(), DeleteMessageErrorKind::JetStream(_)) => Ok(()),
            Err(e) => Err(Error::broken(e)),
        }
    }

    /// Jobs of one model's pool. The pool's consumer is created when it is not there.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn inference_jobs(&self, pool: &str) -> Result<JobQueue<schemas::InferenceJob>, Error> {
        let pool = subject::token(pool);
        self.job_queue(stream::INFERENCE_JOBS, pool_consumer(&pool), format!("vl.v1.job.infer.{pool}.>")).await
    }

    /// Jobs of all tools.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn tool_jobs(&self) -> Result<JobQueue<schemas::ToolJob>, Error> {
        self.job_queue(stream::TOOL_JOBS, "tools".to_owned(), "vl.v1.job.tool.>".to_owned()).await
    }

    /// Jobs of all analysis workers.
    ///
    /// # Errors
    /// When the stream is missing or the server does not answer.
    pub async fn analysis_jobs(&self) -> Result<JobQueue<schemas::AnalysisJob>, Error> {
        self.job_queue(stream::ANALYSIS_JOBS, "analysis".to_owned(), "vl.v1.job.analysis.>".to_owned()).await
    }

    async fn job_queue<J: Job>(
        &self,
        stream: &'static str,
        consumer: String,
        filter: String,
    ) -> Result<JobQueue<J>, Error> {
        super::provision::job_consumer(self, stream, &consumer, &filter).await?;
        let pull = Pull::new(&self.jobs, stream, &consumer, None, 1, PULL_EXPIRES).await?;
        Ok(JobQueue { bus: self.clone(), stream, pull, job: PhantomData })
    }

    /// Jobs of a model's pool that no worker was given yet.
    ///
    /// # Errors
    /// When the pool has no consumer, because no worker ever served it, or the server does not answer.
    pub async fn inference_jobs_waiting(&self, pool: &str) -> Result<u64, Error> {
        let stream = self.js.get_stream_no_info(stream::INFERENCE_JOBS).await.map_err(Error::broken)?;
        let info = stream.consumer_info(pool_consumer(&subject::token(pool))).await.map_err(Error::broken)?;
        Ok(info.num_pending)
    }

    /// Whether a job of a model's pool is in the queue, waiting or in hand. One cheap question.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn has_inference_job(&self, pool: &str) -> Result<bool, Error> {
        let filter = format!("vl.v1.job.infer.{}.>", subject::token(pool));
        let request = serde_json::json!({"next_by_subj": filter, "seq": 1, "batch": 1});
        Ok(!super::log::direct_get(&self.log, stream::INFERENCE_JOBS, &request).await?.is_empty())
    }

    /// How far the jobs of `stream` have been handed to workers.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn job_progress(&self, stream: &str) -> Result<JobProgress, Error> {
        use futures::TryStreamExt;
        let stream = self.js.get_stream(stream).await.map_err(Error::broken)?;
        let mut delivered = Vec::new();
        let mut consumers = stream.consumers();
        while let Some(info) = consumers.try_next().await.map_err(Error::broken)? {
            delivered.push((info.config.filter_subject, info.delivered.stream_sequence));
        }
        Ok(JobProgress { last: stream.cached_info().state.last_sequence, delivered })
    }

    /// Asks a worker what it holds. None when it is gone.
    ///
    /// # Errors
    /// When the question itself failed, which says nothing about the worker.
    pub async fn ask_worker(&self, id: &str, timeout: Duration) -> Result<Option<Holds>, Error> {
        match request(&self.jobs, subject::worker(id), None, bytes::Bytes::new(), timeout).await {
            Ok(reply) => Ok(Some(decode(&reply.payload)?)),
            Err(Error::NoResponders(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says that a worker took a job.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn claim(&self, hold: &Hold) -> Result<(), Error> {
        self.jobs.publish(subject::claim(hold.exec), encode(hold).into()).await.map_err(Error::broken)
    }

    /// Tells workers at once that an execution is cancelled; the fact in the log is what counts.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn announce_cancel(&self, exec: schemas::ExecutionId) -> Result<(), Error> {
        self.jobs.publish(subject::cancel(exec), bytes::Bytes::new()).await.map_err(Error::broken)
    }
}

/// The consumer that the workers of a pool share.
fn pool_consumer(pool: &str) -> String {
    format!("pool-{pool}")
}

/// A queue as one worker sees it.
pub struct JobQueue<J> {
    bus: Bus,
    stream: &'static str,
    pull: Pull,
    job: PhantomData<fn() -> J>,
}

impl<J: Job> JobQueue<J> {
    /// The next job, or none when there was none for a while. Call it only with a free slot in hand. Cancel safe.
    ///
    /// A message that is no job can never become one: it is quarantined and taken off the queue.
    ///
    /// # Errors
    /// When the consumer is gone or the connection closed: open the queue anew.
    pub async fn next(&mut self) -> Result<Option<Delivery<J>>, Error> {
        let Some(message) = self.pull.next().await? else {
            return Ok(None);
        };
        match J::read(&message.payload) {
            Ok(job) => Ok(Some(Delivery::new(job, &self.bus.jobs, &message))),
            Err(error) => {
                self.give_up(&message, &error).await?;
                Ok(None)
            }
        }
    }

    /// Takes nothing more off the queue; returns the jobs that were on their way already.
    ///
    /// # Errors
    /// When the connection is closed. What was on its way is handed out again.
    pub async fn close(self) -> Result<Vec<Delivery<J>>, Error> {
        let messages = self.pull.close().await?;
        // One that is no job is handed out again, and given up by whoever gets it.
        let jobs = messages.iter().filter_map(|message| Some((J::read(&message.payload).ok()?, message)));
        Ok(jobs.map(|(job, message)| Delivery::new(job, &self.bus.jobs, message)).collect())
    }

    /// First quarantined, then taken off: what happens in between is that it comes again.
    async fn give_up(&self, message: &Message, error: &DecodeError) -> Result<(), Error> {
        let Some(reply) = message.reply.clone() else {
            return Ok(());
        };
        let reason = Reason::of(error);
        let (sequence, _) = place_of_reply(&reply);
        let verdict = match self.bus.quarantine(self.stream, sequence, reason, &error.to_string()).await {
            Ok(letter) => format!("+TERM {TERMINATED}{}", letter.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(subject = %message.subject, %error, "a message that is no job is not quarantined yet; it comes again");
                format!("-NAK {{\"delay\": {}}}", QUARANTINE_RETRY.as_nanos())
            }
        };
        self.bus.jobs.publish(reply, verdict.into()).await.map_err(Error::broken)
    }
}

/// A job in hand. Until a verdict is given it says by itself, again and again, that it is being worked on; dropped
/// without a verdict, it is handed to another worker after a while.
pub struct Delivery<J> {
    /// The work.
    pub job: J,
    client: Client,
    reply: Option<async_nats::Subject>,
    progress: tokio::task::JoinHandle<()>,
}

impl<J: Job> Delivery<J> {
    #[expect(clippy::disallowed_methods, reason = "lives exactly as long as the delivery, which aborts it")]
    fn new(job: J, client: &Client, message: &Message) -> Self {
        let (heart, reply) = (client.clone(), message.reply.clone());
        let progress = tokio::spawn(async move {
            let Some(reply) = reply else { return };
            loop {
                tokio::time::sleep(PROGRESS_EVERY).await;
                if heart.publish(reply.clone(), "+WPI".into()).await.is_err() {
                    return;
                }
            }
        });
        Self { job, client: client.clone(), reply: message.reply.clone(), progress }
    }

    /// The result is in the log: take the job off the queue.
    ///
    /// # Errors
    /// When the server does not confirm; the job may come again, and its result is recognised.
    pub async fn done(self) -> Result<(), Error> {
        let Some(reply) = self.reply.clone() else {
            return Ok(());
        };
        request(&self.client, reply.to_string(), None, "+ACK".into(), REPLY_TIMEOUT).await.map(|_| ())
    }

    /// Give it to another worker after `delay`.
    ///
    /// # Errors
    /// When the connection is closed; it will be handed out again by itself.
    pub async fn retry(self, delay: Duration) -> Result<(), Error> {
        let nak = format!("-NAK {{\"delay\": {}}}", delay.as_nanos());
        self.say(nak).await
    }

    async fn say(&self, verdict: String) -> Result<(), Error> {
        let Some(reply) = self.reply.clone() else {
            return Ok(());
        };
        self.client.publish(reply, verdict.into()).await.map_err(Error::broken)
    }
}

impl<J> Drop for Delivery<J> {
    fn drop(&mut self) {
        self.progress.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_until_a_consumer_of_its_pool_has_passed_it() {
        let progress = JobProgress {
            last: 9,
            delivered: vec![("vl.v1.job.infer.large.>".into(), 9), ("vl.v1.job.infer.tiny.>".into(), 4)],
        };
        assert!(progress.handed_out("vl.v1.job.infer.tiny.e1", 4));
        assert!(!progress.handed_out("vl.v1.job.infer.tiny.e1", 5), "another pool's progress says nothing");
        assert!(!progress.handed_out("vl.v1.job.infer.tinier.e1", 1), "nobody serves this pool yet");
        assert!(progress.handed_out("vl.v1.job.infer.tinier.e1", 10), "the server forgot it");
    }
}
