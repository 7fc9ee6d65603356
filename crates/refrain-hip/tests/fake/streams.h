// Streams, events, captures and graphs. Work is queued and runs when somebody waits for it, as late as HIP may.
#pragma once
#include "fake.h"

API int hipGraphDestroy(Graph* graph);

void step(Stream* stream) {
    if (stream->queue.empty()) return;
    Node node = std::move(stream->queue.front());
    stream->queue.pop_front();
    const int status = node.run(node.arguments);
    if (status != SUCCESS && stream->failure == SUCCESS) stream->failure = status;
}
int drain(Stream* stream) {
    while (!stream->queue.empty()) step(stream);
    return std::exchange(stream->failure, SUCCESS);
}

int submit(Stream* stream, Node node) {
    if (!fake().streams.count(stream)) return INVALID_HANDLE;
    if (Graph* graph = stream->capture) {
        if (++graph->seen != fake().numbers["drop_node"]) graph->nodes.push_back(std::move(node));
        return SUCCESS;
    }
    stream->queue.push_back(std::move(node));
    return SUCCESS;
}

Graph* capture_here() {
    for (Stream* stream : fake().streams)
        if (stream->origin && stream->capture->thread == std::this_thread::get_id()) return stream->capture;
    return nullptr;
}

API int hipStreamCreateWithFlags(Stream** stream, unsigned) {
    ENTER();
    fake().streams.insert(*stream = new Stream);
    return SUCCESS;
}
API int hipStreamDestroy(Stream* stream) {
    ENTER();
    if (!fake().streams.count(stream)) return INVALID_HANDLE;
    drain(stream);
    fake().streams.erase(stream);
    for (Event* event : fake().events)
        if (event->stream == stream) event->stream = nullptr;
    delete stream;
    return SUCCESS;
}
API int hipStreamSynchronize(Stream* stream) {
    ENTER();
    if (!fake().streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) {
        fake().numbers["illegal_calls"]++;
        stream->capture->spoilt = true;
        return fake().numbers["spoil_silently"] ? SUCCESS : CAPTURE_UNSUPPORTED;
    }
    return drain(stream);
}

API int hipStreamQuery(Stream* stream) {
    ENTER();
    if (!fake().streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) {
        fake().numbers["illegal_calls"]++;
        stream->capture->spoilt = true;
        return CAPTURE_UNSUPPORTED;
    }
    return stream->queue.empty() ? SUCCESS : NOT_READY;
}

API int hipEventCreateWithFlags(Event** event, unsigned) {
    ENTER();
    fake().events.insert(*event = new Event);
    return SUCCESS;
}
API int hipEventDestroy(Event* event) {
    ENTER();
    if (!fake().events.erase(event)) return INVALID_HANDLE;
    while (event->pending()) step(event->stream);
    delete event;
    return SUCCESS;
}
API int hipEventRecord(Event* event, Stream* stream) {
    ENTER();
    if (!fake().events.count(event) || !fake().streams.count(stream)) return INVALID_HANDLE;
    if (stream->capture) return stream->capture->events.insert(event), SUCCESS;
    event->stream = stream;
    const long number = ++event->recorded;
    return submit(stream, {[event, number](const std::string&) {
                      event->milliseconds = fake().clock;
                      event->passed = number;
                      return SUCCESS;
                  }});
}
API int hipStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    ENTER();
    if (!fake().events.count(event) || !fake().streams.count(stream)) return INVALID_HANDLE;
    for (Stream* other : fake().streams)
        if (other->capture && other->capture->events.count(event)) return stream->capture = other->capture, SUCCESS;
    return submit(stream, {[event, number = event->recorded](const std::string&) {
                      while (event->passed < number) step(event->stream);
                      return SUCCESS;
                  }});
}
API int hipEventQuery(Event* event) {
    ENTER();
    if (!event->pending()) return SUCCESS;
    step(event->stream);
    return NOT_READY;
}
API int hipEventSynchronize(Event* event) {
    ENTER();
    while (event->pending()) step(event->stream);
    return SUCCESS;
}
API int hipEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    ENTER();
    if (from->pending() || to->pending()) return NOT_READY;
    *milliseconds = (float)(to->milliseconds - from->milliseconds);
    return SUCCESS;
}

API int hipStreamBeginCapture(Stream* stream, int) {
    ENTER();
    if (!fake().streams.count(stream) || stream->capture) return INVALID_VALUE;
    stream->capture = new Graph;
    stream->capture->thread = std::this_thread::get_id();
    stream->origin = true;
    fake().numbers["graphs"]++;
    return SUCCESS;
}
API int hipStreamIsCapturing(Stream* stream, int* status) {
    ENTER();
    // Versions before 7.1 say that all is well.
    const bool told = stream->capture && stream->capture->spoilt && !fake().numbers["spoil_silently"];
    *status = !stream->capture ? 0 : told ? 2 : 1;
    return SUCCESS;
}
API int hipStreamEndCapture(Stream* stream, Graph** graph) {
    ENTER();
    *graph = nullptr;
    if (!stream->origin) return CAPTURE_UNMATCHED;
    Graph* made = stream->capture;
    stream->origin = false;
    for (Stream* other : fake().streams)
        if (other->capture == made) other->capture = nullptr;
    if (made->spoilt && !fake().numbers["spoil_silently"]) {
        hipGraphDestroy(made);
        return CAPTURE_INVALIDATED;
    }
    if (made->spoilt) made->nodes.clear();
    if (stream->first.empty()) stream->first = made->nodes;
    else if (fake().numbers["stale_captures"]) made->nodes = stream->first;
    *graph = made;
    return SUCCESS;
}
API int hipGraphGetNodes(Graph* graph, void** nodes, size_t* count) {
    ENTER();
    if (nodes) return INVALID_VALUE;
    *count = graph->nodes.size();
    return SUCCESS;
}
API int hipGraphInstantiate(Graph** executable, Graph* graph, void**, char*, size_t) {
    ENTER();
    *executable = new Graph(*graph);
    fake().numbers["graphs"]++;
    return SUCCESS;
}
API int hipGraphExecUpdate(Graph* executable, Graph* graph, void**, int* result) {
    ENTER();
    *result = 2;
    if (fake().numbers["refuse_update"]) {
        executable->nodes.clear();
        return GRAPH_UPDATE_FAILURE;
    }
    if (executable->nodes.size() != graph->nodes.size()) return GRAPH_UPDATE_FAILURE;
    executable->nodes = graph->nodes;
    *result = 0;
    return SUCCESS;
}
API int hipGraphLaunch(Graph* executable, Stream* stream) {
    ENTER();
    fake().numbers["graph_launches"]++;
    for (Node node : executable->nodes) {
        // The arguments are looked at only now, where the launch left them.
        if (node.late) node.arguments.assign((const char*)node.late[1], *(const size_t*)node.late[3]);
        if (int status = submit(stream, std::move(node))) return status;
    }
    return SUCCESS;
}
API int hipGraphDestroy(Graph* graph) {
    ENTER();
    delete graph;
    fake().numbers["graphs"]--;
    return SUCCESS;
}
API int hipGraphExecDestroy(Graph* executable) { return hipGraphDestroy(executable); }

// For libraries that bring work of their own.
API int fake_enqueue(Stream* stream, int (*run)(const void*), const void* data, size_t bytes) {
    ENTER();
    return submit(stream, {[run](const std::string& data) { return run(data.data()); }, std::string((const char*)data, bytes)});
}
