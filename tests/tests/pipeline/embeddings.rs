//! Embeddings through the edge, made by the real all-MiniLM-L6-v2; `deploy/install` puts it in its place.

use futures::future::try_join_all;
use pipeline_tests::{System, embedding_model, repository};
use serde_json::{Value, json};

async fn with_embeddings() -> anyhow::Result<Option<System>> {
    let Some(model) = embedding_model() else { return Ok(None) };
    let mut system = System::start_without(&["inference-worker"]).await?;
    let model = model.display().to_string();
    system.start_role_with("inference-worker", &["--embedding-models", &model], &[]).await?;
    Ok(Some(system))
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(answer["embeddings"].clone()).expect("vectors")
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn texts_become_the_vectors_of_the_reference() -> anyhow::Result<()> {
    let Some(system) = with_embeddings().await? else { return Ok(()) };
    let reference = repository().join("inference-worker/tests/reference/all-minilm-l6-v2.json");
    let reference: Vec<Value> = serde_json::from_slice(&std::fs::read(reference)?)?;
    let plain: Vec<&Value> = reference.iter().filter(|line| line["text"].is_string()).collect();
    let texts: Vec<&Value> = plain.iter().map(|line| &line["text"]).collect();
    let (status, answer) = system.ask("/internal/embeddings", &json!({"input": texts})).await?;
    assert_eq!((status, &answer["model"], &answer["dimensions"]), (200, &json!("all-minilm-l6-v2"), &json!(384)));
    assert!(
        answer["usage"]["prompt_tokens"].as_u64().is_some_and(|tokens| tokens > texts.len() as u64),
        "{}",
        answer["usage"]
    );
    assert!(answer.get("truncated").is_none(), "nothing was cut");
    let ours = vectors(&answer);
    assert_eq!(ours.len(), plain.len());
    for (ours, line) in ours.iter().zip(&plain) {
        let theirs: Vec<f32> = serde_json::from_value(line["vector"].clone())?;
        let worst = ours.iter().zip(&theirs).fold(0.0_f32, |worst, (a, b)| worst.max((a - b).abs()));
        assert!(worst <= 1e-5 && cosine(ours, &theirs) >= 0.9999, "{}: off by {worst}", line["text"]);
    }

    let question = json!({"model": "all-minilm-l6-v2", "input": ["How do I get my money back?", "Refunds are paid within two weeks.", "The office is closed on Sundays."]});
    let three = vectors(&system.ask("/internal/embeddings", &question).await?.1);
    assert!(cosine(&three[0], &three[1]) > cosine(&three[0], &three[2]) + 0.2);

    let (_, alone) = system.ask("/internal/embeddings", &json!({"input": texts[9]})).await?;
    assert_eq!(vectors(&alone)[0], ours[9], "the same in any company");
    let long = json!({"input": ["short", "word ".repeat(2_000)]});
    let (_, answer) = system.ask("/internal/embeddings", &long).await?;
    assert_eq!(answer["truncated"], json!([1]), "the answer says which were cut");
    Ok(())
}

#[tokio::test]
async fn embeddings_have_bounds_and_leave_chats_their_turn() -> anyhow::Result<()> {
    let Some(system) = with_embeddings().await? else { return Ok(()) };
    let many = json!({"input": vec!["x"; 1_025]});
    let large = json!({"input": ["x".repeat((4 << 20) + 1)]});
    for (body, said) in [(many, "1025 texts, at most 1024"), (large, "4194305 bytes, at most 4194304")] {
        let (status, problem) = system.ask("/internal/embeddings", &body).await?;
        assert_eq!((status, &problem["code"]), (413, &json!("overflow")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(said)), "{problem}");
        assert!(problem["next_step"].as_str().is_some_and(|next| next.contains("several requests")), "{problem}");
    }
    let (status, problem) = system.ask("/internal/embeddings", &json!({"model": "minilm", "input": "x"})).await?;
    assert_eq!((status, &problem["code"]), (404, &json!("unknown_model")), "{problem}");
    let (status, problem) = system.ask("/internal/embeddings", &json!({"input": []})).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{problem}");

    // Requests that keep all threads busy, and between them small ones and a chat: none waits for the others' end.
    let busy = json!({"input": vec!["a sentence of some words that takes its time ".repeat(6); 24]});
    let long = async { try_join_all((0..3).map(|_| system.ask("/internal/embeddings", &busy))).await };
    let short = async {
        let small = json!({"input": "a question"});
        let chat = json!({"messages": [{"role": "user", "content": "hello"}]});
        let (one, two) = tokio::join!(system.ask("/internal/embeddings", &small), system.ask("/internal/chat", &chat));
        anyhow::Ok((one?, two?, runtime::clock::instant()))
    };
    let (long, short) = tokio::join!(async { (long.await, runtime::clock::instant()) }, short);
    let (one, two, answered) = short?;
    assert_eq!((one.0, two.0), (200, 200), "{one:?} {two:?}");
    for (status, answer) in long.0? {
        assert_eq!((status, vectors(&answer).len()), (200, 24), "{answer}");
    }
    assert!(answered < long.1, "the small ones were answered before the large ones");
    Ok(())
}
