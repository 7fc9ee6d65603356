//! `refrain chat`: a conversation in the terminal, or one answer on standard output.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use anyhow::{Context, bail};
use refrain::cli::chat::{ChatArgs, ChatOptions};
use refrain::load::Loaded;
use refrain_engine::{EngineHandle, SamplingParams};
use refrain_server::text::{ChatPrompt, StopCause};
use refrain_server::{GenerateRequest, Prompt, TextEngine};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::{Invocation, load_engine, runtime};

const HELP: &str = "\
/reset         begin anew
/system TEXT   change the instruction, and begin anew; without TEXT, drop it
/exit          leave (Ctrl-D does, too)
Ctrl-C         stop the answer";

/// Talks until the user leaves, or answers once.
pub fn run(args: &ChatArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    // Before loading, so that a mistake is not told seconds later.
    let question = question(args.options.prompt.as_deref())?;
    let loaded = load_engine(&args.engine, Some((1, "one conversation")), invocation)?;
    if loaded.text.tokenizer().is_none() {
        bail!("{} has no tokenizer, so it can't talk; give one with --tokenizer", loaded.model.name);
    }
    if !loaded.text.has_template() {
        eprintln!("{} has no chat template: it continues texts instead of answering.", loaded.model.name);
    }
    let sampling = sampling(&loaded.text, &args.options, args.engine.model.seed)?;
    let mut conversation = Conversation {
        messages: Vec::new(),
        system: args.options.system.clone(),
        kwargs: args.options.chat_template_kwargs.clone().unwrap_or_default(),
        sampling,
        max_tokens: args.options.max_tokens,
    };
    match question {
        Some(question) => answer_once(&mut conversation, &loaded.text, question),
        None => talk(&mut conversation, &loaded, &runtime()?),
    }
}

/// What to answer without a conversation: `--prompt`, or what is piped in, or one after the other.
fn question(prompt: Option<&str>) -> anyhow::Result<Option<String>> {
    let stdin = std::io::stdin();
    if prompt.is_none() && stdin.is_terminal() {
        return Ok(None);
    }
    let mut piped = String::new();
    // Next to a prompt only what is plainly meant is read: whoever starts this program from another one may have left
    // its standard input open for good.
    if prompt.is_none() || is_pipe_or_file() {
        stdin.lock().read_to_string(&mut piped).context("can't read standard input as text")?;
    }
    let piped = piped.trim_end_matches('\n');
    match (prompt, piped) {
        (Some(prompt), "") => Ok(Some(prompt.to_owned())),
        (Some(prompt), piped) => Ok(Some(format!("{prompt}\n\n{piped}"))),
        (None, "") => bail!("standard input is empty; pipe a prompt in, or give one with --prompt"),
        (None, piped) => Ok(Some(piped.to_owned())),
    }
}

fn is_pipe_or_file() -> bool {
    std::fs::metadata("/dev/stdin").is_ok_and(|metadata| metadata.file_type().is_fifo() || metadata.is_file())
}

/// The model's defaults with the flags over them.
fn sampling(text: &TextEngine, options: &ChatOptions, seed: Option<u64>) -> anyhow::Result<SamplingParams> {
    let flags = &options.sampling;
    let defaults = text.default_sampling();
    let top_k = match flags.top_k {
        None => defaults.top_k,
        // -1 is vLLM's other way to say all.
        Some(-1) => 0,
        Some(top_k) => u32::try_from(top_k).ok().with_context(|| format!("--top-k: {top_k} is not 0 (all) or more"))?,
    };
    Ok(SamplingParams {
        temperature: flags.temperature.unwrap_or(defaults.temperature),
        top_p: flags.top_p.unwrap_or(defaults.top_p),
        top_k,
        min_p: flags.min_p.unwrap_or(defaults.min_p),
        presence_penalty: flags.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: flags.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        repetition_penalty: flags.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        seed,
        ..defaults
    })
}

struct Conversation {
    messages: Vec<Value>,
    system: Option<String>,
    kwargs: Map<String, Value>,
    sampling: SamplingParams,
    max_tokens: Option<usize>,
}

impl Conversation {
    fn request(&self, has_template: bool) -> GenerateRequest {
        let prompt = if has_template {
            let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
            let messages = system.chain(self.messages.iter().cloned()).collect();
            Prompt::Chat(ChatPrompt { kwargs: self.kwargs.clone(), ..ChatPrompt::new(messages) })
        } else {
            let texts = self.messages.iter().filter_map(|message| message["content"].as_str());
            Prompt::Text(self.system.as_deref().into_iter().chain(texts).collect())
        };
        let mut request = GenerateRequest::new(prompt, self.sampling.clone());
        request.request_id = "chat".to_owned();
        request.max_tokens = self.max_tokens;
        request
    }

    fn add(&mut self, role: &str, text: &str) {
        self.messages.push(json!({ "role": role, "content": text }));
    }
}

/// Prints one answer and nothing else.
fn answer_once(conversation: &mut Conversation, text: &TextEngine, question: String) -> anyhow::Result<()> {
    conversation.add("user", &question);
    let mut stream = text.generate_blocking(conversation.request(text.has_template()))?;
    let mut stdout = std::io::stdout().lock();
    let mut ends_with_newline = false;
    while let Some(event) = stream.blocking_next() {
        let event = event?;
        if !event.text.is_empty() {
            ends_with_newline = event.text.ends_with('\n');
            // A reader that has gone away wants no more.
            if stdout.write_all(event.text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                return Ok(());
            }
        }
        if let Some(finish) = event.finish {
            tell_if_cut_off(&finish.reason, finish.completion_tokens);
        }
    }
    if !ends_with_newline {
        // As above; there is nothing left to do either way.
        let _ = writeln!(stdout);
    }
    Ok(())
}

fn tell_if_cut_off(reason: &StopCause, tokens: usize) {
    if *reason == StopCause::Length && std::io::stderr().is_terminal() {
        eprint!("\n[cut off after {tokens} tokens]");
    }
}

/// Reads questions and prints answers until the user leaves.
fn talk(conversation: &mut Conversation, loaded: &Loaded, runtime: &Runtime) -> anyhow::Result<()> {
    let device = loaded.engine.device();
    println!("{} ({}: {}). /help tells more.", loaded.model.name, device.kind, device.compute);
    let mut editor = DefaultEditor::new().context("can't read from this terminal")?;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(ReadlineError::Interrupted) => {
                println!("/exit or Ctrl-D leaves.");
                continue;
            }
            Err(error) => return Err(error).context("can't read from this terminal"),
        };
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        // Without a history there is still a conversation.
        let _ = editor.add_history_entry(line);
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "/exit" | "/quit" => return Ok(()),
            "/help" => println!("{HELP}"),
            "/reset" => conversation.messages.clear(),
            "/system" => {
                conversation.messages.clear();
                conversation.system = Some(rest.trim().to_owned()).filter(|text| !text.is_empty());
            }
            command if command.starts_with('/') => println!("There is no {command}.\n{HELP}"),
            _ => {
                conversation.add("user", line);
                let spoken = runtime.block_on(speak(conversation, &loaded.text));
                match spoken {
                    Ok(answer) if !answer.is_empty() => conversation.add("assistant", &answer),
                    // Roles must alternate: a question without an answer was never asked.
                    Ok(_) => drop(conversation.messages.pop()),
                    Err(error) if runtime.block_on(is_dead(&loaded.engine)) => return Err(error),
                    Err(error) => {
                        conversation.messages.pop();
                        eprintln!("{} (/reset begins anew)", super::message(&error));
                    }
                }
            }
        }
    }
}

/// Whether the engine has died, so that there will be no more answers. Requests are told a moment before.
async fn is_dead(engine: &EngineHandle) -> bool {
    // In time or not, the answer is the same.
    let _ = tokio::time::timeout(Duration::from_millis(300), engine.stopped()).await;
    engine.is_dead()
}

/// Prints the answer to the last question as it comes, until its end or Ctrl-C, and gives it back.
async fn speak(conversation: &Conversation, text: &TextEngine) -> anyhow::Result<String> {
    let mut stream = text.generate(conversation.request(text.has_template())).await?;
    let mut answer = String::new();
    let mut stdout = std::io::stdout();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            result = tokio::signal::ctrl_c() => {
                result.context("can't wait for Ctrl-C")?;
                print!(" [stopped]");
                None
            }
        };
        let Some(event) = event.transpose()? else { break };
        answer.push_str(&event.text);
        stdout.write_all(event.text.as_bytes())?;
        stdout.flush()?;
        if let Some(finish) = event.finish {
            tell_if_cut_off(&finish.reason, finish.completion_tokens);
        }
    }
    println!();
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_device::{Backend, Cell, DeviceError, DeviceInfo, PoolSizes, Step, StepOutput};
    use refrain_engine::{Engine, EngineConfig, Event, Request, SchedulingPolicy};

    /// A device that fails at the first step, for good or not.
    struct Failing(DeviceInfo, bool);

    impl Backend for Failing {
        fn device(&self) -> &DeviceInfo {
            &self.0
        }

        fn begin(&mut self, _: &Step, _: Cell) -> Result<(), DeviceError> {
            let [device, call, text] = ["test:0", "a step", "it fell off the bus"].map(str::to_owned);
            Err(match self.1 {
                true => DeviceError::Lost { device, call, code: 79, text },
                false => DeviceError::InvalidStep { what: text },
            })
        }

        fn finish(&mut self) -> Result<StepOutput<'_>, DeviceError> {
            unreachable!("no step begins")
        }
    }

    #[test]
    fn a_lost_device_is_known_when_the_answer_fails_and_another_failure_is_not_the_end() {
        for lost in [true, false] {
            let config = EngineConfig {
                max_num_seqs: 1,
                max_num_batched_tokens: 65,
                max_model_len: 16,
                pools: PoolSizes { blocks: 1, slots: 1 },
                scheduling_policy: SchedulingPolicy::Fcfs,
                max_num_queued_reqs: None,
                max_num_queued_tokens: None,
                eos_token_ids: vec![],
                vocab_size: 2,
                seed: 0,
            };
            let engine = Engine::start(Box::new(Failing(DeviceInfo::default(), lost)), config).unwrap();
            let sampling = SamplingParams { max_tokens: 4, ..SamplingParams::default() };
            let request = Request { id: "test".to_owned(), prompt: vec![1], sampling, priority: 0 };
            let mut answer = engine.submit(request).unwrap();
            assert!(matches!(answer.blocking_next(), Some(Event::Failed(_))));
            assert_eq!(runtime().unwrap().block_on(is_dead(&engine)), lost);
        }
    }
}
