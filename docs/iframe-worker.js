// Search without a server: a page that was opened as a file may start no worker. This takes the
// worker's place there, by a script in a hidden frame that answers through the same events.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      script.src = new URL(url, location).href;
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => {
        this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data }));
      });
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
