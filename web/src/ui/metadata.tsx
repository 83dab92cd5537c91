import { useState } from "preact/hooks";
import { editScene, messageOf } from "../core/api";
import type { Metadata, Scene } from "../core/types";
import { EditIcon } from "./icons";
import { Notice } from "./notice";
import { useMay } from "./session";

type Field = keyof Metadata;

const FIELDS: readonly { name: Field; label: string; long?: boolean }[] = [
  { name: "title", label: "Title" },
  { name: "description", label: "Description", long: true },
  { name: "attribution", label: "Attribution" },
  { name: "rights", label: "Rights" },
];

const isLink = (text: string): boolean => /^https?:\/\/\S+$/.test(text);

function Value({ text }: { text: string }) {
  return isLink(text) ? <a href={text} rel="noreferrer">{text.replace(/^https?:\/\//, "")}</a> : <>{text}</>;
}

function MetadataView({ scene, onEdit }: { scene: Scene; onEdit: () => void }) {
  const mayWrite = useMay("write");
  const shown = FIELDS.filter(({ name }) => name !== "title" && scene[name]);
  return (
    <section class="metadata">
      <div class="section-head">
        <h2>About</h2>
        {mayWrite && <button class="quiet" onClick={onEdit}><EditIcon /> Edit</button>}
      </div>
      {shown.length === 0 && <p class="hint">No description yet.</p>}
      <dl>
        {shown.map(({ name, label }) => (
          <div key={name} class={`metadata-${name}`}>
            <dt>{label}</dt>
            <dd><Value text={scene[name] ?? ""} /></dd>
          </div>
        ))}
      </dl>
    </section>
  );
}

/** The fields of the form that differ from the scene; null where one was emptied. */
function changesIn(form: HTMLFormElement, scene: Scene): Partial<Metadata> {
  const data = new FormData(form);
  const textOf = (name: Field) => String(data.get(name) ?? "").trim() || null;
  const changed = FIELDS.map(({ name }) => [name, textOf(name)] as const).filter(
    ([name, text]) => text !== scene[name],
  );
  return Object.fromEntries(changed);
}

interface FormProps {
  scene: Scene;
  onSaved: (scene: Scene) => void;
  onClose: () => void;
}

function MetadataForm({ scene, onSaved, onClose }: FormProps) {
  const [error, setError] = useState<string | null>(null);
  const save = (event: SubmitEvent & { currentTarget: HTMLFormElement }) => {
    event.preventDefault();
    const changes = changesIn(event.currentTarget, scene);
    if (Object.keys(changes).length === 0) return onClose();
    editScene(scene.id, changes).then(
      (saved) => {
        onSaved(saved);
        onClose();
      },
      (reason: unknown) => setError(messageOf(reason)),
    );
  };
  return (
    <form class="metadata" onSubmit={save} onKeyDown={(event) => event.key === "Escape" && onClose()}>
      <h2>About</h2>
      {FIELDS.map(({ name, label, long }, index) => (
        <label key={name}>
          {label}
          {long ? (
            <textarea name={name} rows={4} defaultValue={scene[name] ?? ""} />
          ) : (
            <input
              name={name}
              defaultValue={scene[name] ?? ""}
              ref={(input) => {
                if (index === 0 && input && !input.dataset.focused) {
                  input.dataset.focused = "yes";
                  input.focus();
                }
              }}
            />
          )}
        </label>
      ))}
      <p class="hint">Rights are the web address of a licence; IIIF viewers show it.</p>
      {error !== null && <Notice message={error} />}
      <div class="actions">
        <button class="button primary" type="submit">Save</button>
        <button class="button" type="button" onClick={onClose}>Cancel</button>
      </div>
    </form>
  );
}

export function MetadataPanel({ scene, onSaved }: { scene: Scene; onSaved: (scene: Scene) => void }) {
  const [editing, setEditing] = useState(false);
  if (editing) {
    return <MetadataForm scene={scene} onSaved={onSaved} onClose={() => setEditing(false)} />;
  }
  return <MetadataView scene={scene} onEdit={() => setEditing(true)} />;
}
