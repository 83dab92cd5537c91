import type { ComponentChildren } from "preact";

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      {children}
    </svg>
  );
}

export const BackIcon = () => <Icon><path d="M15 5l-7 7 7 7" /></Icon>;
export const PlusIcon = () => <Icon><path d="M12 5v14M5 12h14" /></Icon>;
export const MinusIcon = () => <Icon><path d="M5 12h14" /></Icon>;
export const CloseIcon = () => <Icon><path d="M6 6l12 12M18 6L6 18" /></Icon>;
export const FitIcon = () => (
  <Icon><path d="M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5" /></Icon>
);
export const FullIcon = () => (
  <Icon><path d="M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7" /></Icon>
);
export const TreeIcon = () => (
  <Icon><path d="M4 4h16v16H4zM12 4v16M4 12h16M16 4v8M12 8h8" /></Icon>
);
/** A cube, seen from above a corner. */
export const ShapeIcon = () => (
  <Icon><path d="M12 3l8 4.500v9L12 21l-8-4.500v-9zM12 12l8-4.500M12 12v9M12 12L4 7.500" /></Icon>
);
export const WiresIcon = () => (
  <Icon><path d="M12 4L3.500 19h17zM7.750 11.500h8.500L12 19z" /></Icon>
);
export const UpIcon = () => <Icon><path d="M12 20V5M7 10l5-5 5 5" /></Icon>;
export const DownloadIcon = () => <Icon><path d="M12 4v11M7 11l5 5 5-5M5 20h14" /></Icon>;
export const UploadIcon = () => <Icon><path d="M12 16V5M7 9l5-5 5 5M5 20h14" /></Icon>;
export const RetryIcon = () => <Icon><path d="M19 12a7 7 0 1 1-2-5M19 4v4h-4" /></Icon>;
export const PauseIcon = () => <Icon><path d="M9 6v12M15 6v12" /></Icon>;
export const ResumeIcon = () => <Icon><path d="M8 5l10 7-10 7z" /></Icon>;
export const StopIcon = () => <Icon><path d="M7 7h10v10H7z" /></Icon>;
export const TrashIcon = () => (
  <Icon><path d="M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13" /></Icon>
);
export const EditIcon = () => <Icon><path d="M5 19l1-4L16 5l3 3L9 18z" /></Icon>;

/** An acorn whose nut is cut like a block tree. */
export function Logo() {
  return (
    <svg class="logo" viewBox="0 0 32 32" aria-hidden="true">
      <path class="logo-nut" d="M6.600 14.500h18.800c0 7.600-4.600 11.300-8.200 13.600-.8.500-1.600.500-2.400 0-3.600-2.300-8.200-6-8.200-13.600z" />
      <path class="logo-cuts" d="M16 14.500v14M6.900 19.200h18.200M20.600 14.500v4.700M11.400 19.200v6" />
      <path class="logo-cap" d="M4.500 13.800C4.500 8.600 9.600 6 16 6s11.500 2.600 11.500 7.800c0 .9-.7 1.200-1.500 1.200H6c-.8 0-1.500-.3-1.500-1.200z" />
      <path class="logo-stem" d="M16 6.500c0-2 .5-3.300 2-4.500" />
    </svg>
  );
}
