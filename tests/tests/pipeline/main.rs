//! The whole pipeline against a real nats-server, real processes and the real model; one module a story.

mod agent_types;
mod agents;
mod audit;
mod commands;
mod context;
mod crowd;
mod dead_letters;
mod embeddings;
mod full_queue;
mod generation;
mod index;
mod interruptions;
mod kill;
mod models;
mod moments;
mod objects;
mod people;
mod plugins;
mod proof;
mod refusals;
mod remote;
mod requests;
mod starting;
mod storage;
mod takeover;
mod tools;
